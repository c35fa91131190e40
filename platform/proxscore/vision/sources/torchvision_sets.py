"""Data sets of the literature from their official files, in the splits of the literature.

Photographs are found by torchvision's own readers (``download=False``), in torchvision's layout below ``path``. CIFAR is read
from its official binary version, a byte per label and 3,072 of pixels (red, green, blue; each row by row): the Python version is
a pickle, and nothing that a file holds is executed.

Sources: Parkhi et al. 2012, Cats and Dogs (pets); Nilsback and Zisserman 2008 (flowers102); Maji et al. 2013, arXiv 1306.5151
(aircraft); Cimpoi et al. 2014, Describing Textures in the Wild (dtd); Krizhevsky 2009, Learning Multiple Layers of Features from
Tiny Images (cifar10, cifar100).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torchvision.datasets import DTD, FGVCAircraft, Flowers102, OxfordIIITPet

from proxscore.config import ConfigError
from proxscore.config.files import check_regular
from proxscore.vision.decoding import Decoder
from proxscore.vision.images import MemoryReader, Normalisation, Reader, Source, View, check_labels
from proxscore.vision.sources.base import EncodedImageSource
from proxscore.vision.sources.image_folder import FolderReader
from proxscore.vision.splits import Rows

log = logging.getLogger(__name__)

_SIDE = 32  # pixels of CIFAR's images


class TorchvisionConfig(EncodedImageSource):
    """A data set of the literature from its official files, in a folder as torchvision lays it out.

    Training images are the official ``trainval`` (of flowers102 and dtd, train and val together), test images the official test;
    validation is ``validation_fraction`` of the training images, drawn by ``split_seed``.
    """

    kind: Literal["torchvision"] = "torchvision"
    name: Literal["pets", "flowers102", "aircraft", "dtd", "cifar10", "cifar100"]  # of the data set
    path: Path  # the folder that holds the data set's own (oxford-iiit-pet, flowers-102, ...)
    size: int | None = Field(None, gt=0, le=16_384)  # type: ignore[assignment]  # null: 32 of CIFAR, 224 of photographs

    def load(self) -> Source:
        return load(self)


@dataclass(frozen=True)
class OfficialSet:
    """A data set of photographs, as torchvision reads it.

    Attributes:
        page: the name of its official page.
        files: what has to be there below the folder, and the archive of the page that brings it.
        rows: of training and test.
        open: (folder, split) to torchvision's reader.
        train: splits of torchvision's that training images are of.
    """

    page: str
    files: dict[str, str]
    rows: tuple[int, int]
    open: Callable[[Path, str], Any]
    train: tuple[str, ...]


_AIRCRAFT, _DTD = "fgvc-aircraft-2013b.tar.gz", "dtd-r1.0.1.tar.gz, unpacked in a folder dtd"

SETS = {
    "pets": OfficialSet(
        "The Oxford-IIIT Pet Dataset",
        {
            "oxford-iiit-pet/images": "images.tar.gz",
            "oxford-iiit-pet/annotations/trainval.txt": "annotations.tar.gz",
            "oxford-iiit-pet/annotations/test.txt": "annotations.tar.gz",
        },
        (3680, 3669),
        lambda folder, split: OxfordIIITPet(folder, split),
        ("trainval",),
    ),
    "flowers102": OfficialSet(
        "102 Category Flower Dataset",
        {
            "flowers-102/jpg": "102flowers.tgz",
            "flowers-102/imagelabels.mat": "imagelabels.mat",
            "flowers-102/setid.mat": "setid.mat",
        },
        (2040, 6149),
        lambda folder, split: Flowers102(folder, split),
        ("train", "val"),
    ),
    "aircraft": OfficialSet(
        "FGVC-Aircraft Benchmark",
        {
            f"fgvc-aircraft-2013b/data/{name}": _AIRCRAFT
            for name in ("images", "variants.txt", "images_variant_trainval.txt", "images_variant_test.txt")
        },
        (6667, 3333),
        lambda folder, split: FGVCAircraft(folder, split),
        ("trainval",),
    ),
    "dtd": OfficialSet(
        "Describable Textures Dataset (DTD)",
        {f"dtd/dtd/{name}": _DTD for name in ("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt")},
        (3760, 1880),
        lambda folder, split: DTD(folder, split),  # partition 1
        ("train", "val"),
    ),
}


@dataclass(frozen=True)
class Cifar:
    """A binary version of CIFAR: files in order, the names of the classes, and bytes of labels before each image, the last of
    which is the class."""

    page: str
    folder: str
    archive: str
    pickles: str
    train: tuple[str, ...]
    test: str
    names: str
    classes: int
    label_bytes: int


CIFARS = {
    "cifar10": Cifar(
        "The CIFAR-10 dataset",
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        10,
        1,
    ),
    "cifar100": Cifar(
        "The CIFAR-100 dataset",
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        "cifar-100-python",
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
        100,
        2,  # the coarse label comes first
    ),
}


def load(config: TorchvisionConfig) -> Source:
    """Pools ``train`` and ``test`` of a data set, in the order of its official lists.

    Raises:
        ConfigError: a file is missing, with the name of the archive that brings it, or is not of the official form.
    """
    path = config.path.expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(f"task.data.path {path}: no such folder")
    if config.name in CIFARS:
        return _cifar(config, path, CIFARS[config.name])
    config = config.model_copy(update={"size": config.size or 224})
    decoder = Decoder.of(config)
    official = SETS[config.name]
    for file, archive in official.files.items():
        _check_there(path / file, archive, official.page)
    train, test = [_opened(path, official, split) for split in official.train], _opened(path, official, "test")
    classes = tuple(train[0].classes)
    for reader in (*train, test):
        if tuple(reader.classes) != classes:
            raise ConfigError(f"{path}: the classes of {config.name} differ between its splits: not the official files")
    pools: dict[str, Reader] = {"train": _pool(train, decoder), "test": _pool([test], decoder)}
    for part, pool in pools.items():
        check_labels(pool.labels, len(classes), lambda row, part=part: f"{path}: {config.name}, {part} row {row}")  # type: ignore[misc]
    _tell_counts(config.name, pools)
    return Source(pools, classes, decoder.shape)


def _opened(path: Path, official: OfficialSet, split: str) -> Any:
    try:
        return official.open(path, split)
    except RuntimeError as error:  # what it looks for is there: a file's MD5 differs
        raise ConfigError(
            f"{path}: {', '.join(file for file in official.files)}: not the official files of {official.page!r}, whose MD5 "
            "torchvision checks"
        ) from error
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{path}: the {split} list is not of the official form of {official.page!r}: {reason}"
        ) from error


def _pool(readers: list[Any], decoder: Decoder) -> FolderReader:
    files = [Path(file) for reader in readers for file in getattr(reader, "_image_files", None) or reader._images]
    labels = np.array([label for reader in readers for label in reader._labels], dtype=np.int64)
    return FolderReader(files, labels, decoder)


class CifarReader(Reader):
    """CIFAR's images in another size or colour than their own: each goes the way of an encoded image."""

    decodes = True

    def __init__(self, pixels: NDArray[np.uint8], labels: Rows, decoder: Decoder) -> None:
        self.pixels, self.labels, self.decoder = pixels, labels, decoder

    def read(self, rows: Rows, view: View | None = None) -> tuple[torch.Tensor, Rows]:
        """See :meth:`Reader.read`."""
        header = f"P6 {_SIDE} {_SIDE} 255\n".encode()  # a portable pixmap: these bytes, pixel by pixel
        encoded = ((header + self.pixels[row].transpose(1, 2, 0).tobytes(), f"row {row}") for row in rows)
        return self.decoder.batch(encoded, view)


def _cifar(config: TorchvisionConfig, path: Path, cifar: Cifar) -> Source:
    folder = path / cifar.folder
    if not folder.is_dir() and (path / cifar.pickles).is_dir():
        raise ConfigError(
            f"{path / cifar.pickles}: is the Python version, whose files are pickles, which are not read: unpack the binary "
            f"version ({cifar.archive} of {cifar.page!r}) into {folder}"
        )
    for file in (*cifar.train, cifar.test, cifar.names):
        _check_there(folder / file, cifar.archive, cifar.page)
    try:
        names = tuple(line.strip() for line in (folder / cifar.names).read_text().splitlines() if line.strip())
    except ValueError as error:
        raise ConfigError(f"{folder / cifar.names}: is no text") from error
    if len(names) != cifar.classes:
        raise ConfigError(f"{folder / cifar.names}: names {len(names)} classes; expected {cifar.classes}")
    side = config.size or _SIDE
    config = config.model_copy(update={"size": side})
    plain = side == _SIDE and config.channels == 3 and config.crop in (None, 1)
    decoder, normalise = Decoder.of(config), Normalisation.of(config.mean, config.std, config.channels)
    pools: dict[str, Reader] = {}
    for part, files in (("train", cifar.train), ("test", (cifar.test,))):
        read = [_cifar_file(folder / file, cifar) for file in files]
        pixels, labels = (np.concatenate([each[place] for each in read]) for place in range(2))
        if plain:
            pools[part] = MemoryReader(torch.from_numpy(pixels), labels, normalise)
        else:
            pools[part] = CifarReader(pixels, labels, decoder)
    _tell_counts(config.name, pools)
    return Source(pools, names, decoder.shape)


def _cifar_file(file: Path, cifar: Cifar) -> tuple[NDArray[np.uint8], Rows]:
    check_regular(file)
    row, content = cifar.label_bytes + 3 * _SIDE * _SIDE, np.fromfile(file, dtype=np.uint8)
    if not len(content) or len(content) % row:
        raise ConfigError(
            f"{file}: {len(content)} bytes are no whole number of rows of {row}; unpack {cifar.archive} again"
        )
    rows = content.reshape(-1, row)
    labels = rows[:, cifar.label_bytes - 1].astype(np.int64)
    check_labels(labels, cifar.classes, lambda bad: f"{file}, row {bad}")
    return np.ascontiguousarray(rows[:, cifar.label_bytes :]).reshape(-1, 3, _SIDE, _SIDE), labels


def _check_there(file: Path, archive: str, page: str) -> None:
    if not file.exists():
        raise ConfigError(f"{file}: is missing; it comes with {archive} of the page {page!r}")


def official_rows(name: str) -> tuple[int, int]:
    """How many training images (with those of validation) and test images a data set has by its official lists."""
    return SETS[name].rows if name in SETS else (50_000, 10_000)


def _tell_counts(name: str, pools: dict[str, Reader]) -> None:
    official = official_rows(name)
    found = tuple(len(pools[part].labels) for part in ("train", "test"))
    if found != official:
        log.warning(
            "task.data: %s has %d training and %d test images here; the official data set has %d and %d: results are not "
            "comparable",
            name,
            *found,
            *official,
        )
