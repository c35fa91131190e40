"""Folders of images, a folder per class, decoded as they are read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.vision.decoding import Decoder, UnreadableError, leave_out, verify_file
from proxscore.vision.images import Reader, Source, View
from proxscore.vision.sources.base import EncodedImageSource
from proxscore.vision.splits import Rows

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")  # as torchvision's ImageFolder
_PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


class ImageFolderConfig(EncodedImageSource):
    """A folder per class; either directly under ``path`` or under ``path/train``, ``path/val(idation)``, ``path/test``."""

    kind: Literal["image_folder"] = "image_folder"
    path: Path  # a folder per class, or train, val and test with these in each

    def load(self) -> Source:
        return load(self)


class FolderReader(Reader):
    """Image files of one folder of class folders, in the order of class and then path.

    Args:
        files: path of each row.
        labels: (N,) class of each row.
        decoder: how files become images.
    """

    decodes = True

    def __init__(self, files: list[Path], labels: Rows, decoder: Decoder) -> None:
        self.files, self.labels, self.decoder = files, labels, decoder

    def read(self, rows: Rows, view: View | None = None) -> tuple[Tensor, Rows]:
        """See :meth:`Reader.read`; raises ConfigError naming a file that cannot be decoded."""
        return self.decoder.batch(((self.files[row], str(self.files[row])) for row in rows), view)

    def verify(self) -> None:
        """Open every file once; raises ConfigError naming the first that is not an image, or says which are left out.

        Headers and PNG checksums are checked, pixels are not decoded: a JPEG cut short is found when it is read.
        """
        # Two busy cores, files in the page cache: 0.2 ms for a JPEG of 34 kB, 0.5 ms for a PNG of 307 kB (decoding them
        # takes 9 and 22 ms); four minutes for ImageNet's 1.3 million. Threads are many because discs and networks wait.
        with ThreadPoolExecutor(16) as pool:
            if not any(list(pool.map(self._readable, self.files))):
                raise ConfigError(f"{self.files[0].parent}: none of the {len(self.files)} images can be read")

    def _readable(self, path: Path) -> bool:
        try:
            verify_file(path)
        except UnreadableError as error:
            if not self.decoder.skip:
                raise
            leave_out(error)
            return False
        return True


def load(config: ImageFolderConfig) -> Source:
    """One pool from ``path/<class>/...``, or, where ``path/train`` is a folder, a pool per split folder.

    Classes are the sorted names of the training folders. Images may lie deeper inside a class folder; files with other
    extensions than ``EXTENSIONS`` and names with a leading dot are passed over. Links are followed; a folder that they lead to
    twice, or in a circle, counts once.

    Raises:
        ConfigError: no such folder, fewer than two classes, a class without images, classes that differ between splits,
            a folder beside ``train`` that is not a split. The folder is named.
    """
    path = config.path.expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(f"task.data.path {path}: no such folder")
    decoder = Decoder.of(config)
    roots = _roots(path)
    classes = _folders(roots["train"])
    if len(classes) < 2:
        raise ConfigError(f"{roots['train']}: {len(classes)} class folders; expected at least two, each with images")
    pools: dict[str, Reader] = {part: _pool(root, classes, decoder) for part, root in roots.items()}
    return Source(pools, tuple(classes), (config.channels, config.size, config.size))


def _roots(path: Path) -> dict[str, Path]:
    names = _folders(path)
    if "train" not in names:
        if names and set(names) <= set(_PARTS):
            raise ConfigError(f"{path}: has {', '.join(names)} but no folder named train")
        return {"train": path}
    unknown = [name for name in names if name not in _PARTS]
    if unknown:
        raise ConfigError(f"{path / unknown[0]}: beside train only val (or validation) and test are expected")
    if {"val", "validation"} <= set(names):
        raise ConfigError(f"{path}: has both val and validation; keep one")
    return {_PARTS[name]: path / name for name in names}


def _pool(root: Path, classes: list[str], decoder: Decoder) -> FolderReader:
    own = _folders(root)
    if own != classes:
        missing, extra = sorted(set(classes) - set(own)), sorted(set(own) - set(classes))
        fault = f"lacks class folder {missing[0]!r}" if missing else f"has class folder {extra[0]!r}"
        raise ConfigError(f"{root}: {fault}, unlike train; every split needs the same classes")
    files: list[Path] = []
    counts: list[int] = []
    for name in classes:
        found = _images(root / name)
        if not found:
            raise ConfigError(f"{root / name}: class folder without images ({', '.join(EXTENSIONS)})")
        files += found
        counts.append(len(found))
    return FolderReader(files, np.repeat(np.arange(len(classes), dtype=np.int64), counts), decoder)


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Image files in a folder and the folders in it, each of which is entered once, whatever links lead there."""
    found = []
    entered: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        place = os.stat(where)
        if (place.st_dev, place.st_ino) in entered:
            folders.clear()
            continue
        entered.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(where, name) for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
    return sorted(found)
