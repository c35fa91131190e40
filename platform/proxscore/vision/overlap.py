"""Whether images that are held to be of other kinds are among those of training after all: by class name and by content.

Content is compared byte by byte (a digest of encoded files, or of pixels in memory): a resized or newly compressed copy is
not found.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.vision.image_task import ImageTask
from proxscore.vision.images import MemoryReader, Reader
from proxscore.vision.outside import EncodedRows, MadeReader, Outside, PixelReader, scaled
from proxscore.vision.sources.image_folder import FolderReader
from proxscore.vision.sources.parquet import ParquetReader

Entry = tuple[str, int, Callable[[], bytes]]  # name, size in bytes, and what gives a digest of the content


def check_outside(asked: str, outside: Outside, task: ImageTask) -> bool:
    """Refuse images that overlap with those of the task.

    Returns:
        Whether contents could be compared: readers of other packages are not known here.

    Raises:
        ConfigError: folders are called as training classes, or images are among those of the task; says how many, and one.
    """
    known = {name.casefold() for name in task.data.classes}
    same = [name for name in outside.classes if name.casefold() in known]
    if same:
        raise ConfigError(
            f"--ood {asked}: {len(same)} of its {len(outside.classes)} folders are called as classes of training, such as "
            f"{same[0]!r}: leave them out, or rename them if they are other classes"
        )
    if isinstance(outside.images.reader, MadeReader):
        return True
    readers: list[Any] = list({id(part.reader): part.reader for part in _parts(task)}.values())
    if not all(isinstance(reader, (FolderReader, ParquetReader, MemoryReader)) for reader in readers):
        return False
    found = list(_common(outside.images.reader, readers))
    if found:
        raise ConfigError(
            f"--ood {asked}: {len(found)} of its {len(outside.images)} images are among those of training, validation or test, "
            f"such as {found[0][0]} (the same as {found[0][1]}): leave them out"
        )
    return True


def _parts(task: ImageTask) -> list[Any]:
    return [task.data.train, task.data.validation, task.data.test]


def _common(outside: Reader, readers: list[Reader]) -> Iterator[tuple[str, str]]:
    """Names of outside images, and of the images of the task with the same content. Only files of equal size are read."""
    by_size: dict[int, list[Entry]] = defaultdict(list)
    for entry in _entries(outside):
        by_size[entry[1]].append(entry)
    digests: dict[int, dict[bytes, list[str]]] = {}
    for reader in readers:
        for name, size, digest in _entries(reader):
            if size not in by_size:
                continue
            if size not in digests:
                digests[size] = defaultdict(list)
                for other, _, own in by_size[size]:
                    digests[size][own()].append(other)
            for other in digests[size].pop(digest(), []):
                yield other, name


def _entries(reader: Any) -> Iterator[Entry]:
    if isinstance(reader, FolderReader):
        for path in reader.files:
            yield str(path), path.stat().st_size, partial(_digest_of_file, path)
    elif isinstance(reader, (EncodedRows, ParquetReader)):
        for rows in np.split(
            np.arange(len(reader.labels), dtype=np.int64), reader.groups.firsts[1:]
        ):  # a group at a time
            for image, name in reader.groups.images(rows):
                if isinstance(image, Path):  # of a table beside its images
                    yield str(image), image.stat().st_size, partial(_digest_of_file, image)
                else:
                    yield name, len(image or b""), partial(bytes, _digest(image or b""))
    elif isinstance(reader, (MemoryReader, PixelReader)):
        pixels = (scaled(reader) if isinstance(reader, MemoryReader) else reader.pixels).numpy()
        for row in range(len(pixels)):
            yield f"row {row} of {len(pixels):,}", pixels[row].nbytes, partial(_digest_of_pixels, pixels[row])


def _digest_of_file(path: Path) -> bytes:
    return _digest(path.read_bytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _digest_of_pixels(pixels: NDArray[np.uint8]) -> bytes:
    return _digest(pixels.tobytes())
