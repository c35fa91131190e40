"""IDX files, as MNIST and Fashion-MNIST come: big-endian header, then bytes; plain or compressed by gzip.

Header: magic number 0x0803 (images: unsigned bytes, three axes) or 0x0801 (labels: one axis), then the length of each
axis as a 32-bit integer. Format: LeCun, Cortes and Burges, The MNIST database of handwritten digits.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from pydantic import Field

from proxscore.config import ConfigError
from proxscore.vision.images import MemoryReader, Normalisation, Reader, Source, check_labels
from proxscore.vision.sources.base import ImageSource

_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


class IdxConfig(ImageSource):
    """IDX files (plain or gz) in one folder, named as MNIST and Fashion-MNIST name them (train-..., t10k-...)."""

    kind: Literal["idx"] = "idx"
    path: Path  # the folder with the four files of MNIST's form
    classes: int = Field(10, gt=1, le=256)  # a label is a byte; labels are 0..classes-1

    def load(self) -> Source:
        return load(self)


def load(config: IdxConfig) -> Source:
    """Pool ``train`` from ``train-*``, and pool ``test`` from ``t10k-*`` where ``path`` has those files.

    Raises:
        ConfigError: a file is missing, of another format, cut short, or does not fit its partner; a label is outside
            0..classes-1. The file is named.
    """
    path = config.path.expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(f"task.data.path {path}: no such folder")
    normalise = Normalisation.of(config.mean, config.std, 1)
    pools: dict[str, Reader] = {"train": _pool(path, "train", config.classes, normalise)}
    shape = _shape(pools["train"])
    if any(_find(path, f"t10k-{kind}") for kind in (_IMAGES, _LABELS)):
        pools["test"] = _pool(path, "t10k", config.classes, normalise)
        if _shape(pools["test"]) != shape:
            sizes = " and ".join("x".join(map(str, _shape(pool)[1:])) for pool in pools.values())
            raise ConfigError(f"{path}: train and t10k images differ in size, {sizes} pixels")
    return Source(pools, tuple(str(c) for c in range(config.classes)), shape)


def _pool(folder: Path, part: str, classes: int, normalise: Normalisation) -> MemoryReader:
    paths = {kind: _find(folder, f"{part}-{kind}") for kind in (_IMAGES, _LABELS)}
    for kind, found in paths.items():
        if found is None:
            raise ConfigError(f"task.data.path {folder}: neither {part}-{kind} nor {part}-{kind}.gz is there")
    images_path, labels_path = (found for found in paths.values() if found is not None)
    pixels, labels = _read(images_path, 3), _read(labels_path, 1).astype(np.int64)
    if len(pixels) != len(labels):
        raise ConfigError(f"{labels_path}: {len(labels)} labels for {len(pixels)} images in {images_path.name}")
    if not len(labels):
        raise ConfigError(f"{images_path}: holds no images")
    check_labels(labels, classes, lambda row: f"{labels_path}, row {row}")
    return MemoryReader(torch.from_numpy(pixels)[:, None], labels, normalise)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _shape(reader: Reader) -> tuple[int, int, int]:
    assert isinstance(reader, MemoryReader)
    channels, height, width = reader.pixels.shape[1:]
    return channels, height, width


def _read(path: Path, axes: int) -> NDArray[np.uint8]:
    compressed = path.suffix == ".gz"
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            lengths = _lengths(path, axes, file.read(4 * (1 + axes)))
            expected = math.prod(lengths)
            # No more is read than the header promises: what inflates without an end is found by its one byte too many.
            content = bytearray(file.read(expected))
            more = len(file.read(1))
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: {'not a whole gzip file' if compressed else 'cannot be read'}: {error}") from error
    if len(content) < expected or more:
        shape = "x".join(map(str, lengths))
        found = "more" if more else len(content)
        raise ConfigError(f"{path}: the header says {shape} = {expected} bytes; {found} follow it")
    return np.frombuffer(content, dtype=np.uint8).reshape(lengths)


def _lengths(path: Path, axes: int, header: bytes) -> list[int]:
    """The length of each axis.

    Raises:
        ConfigError: not a header of that many axes, or of more bytes than there is memory for.
    """
    if len(header) < 4 * (1 + axes):
        raise ConfigError(f"{path}: {len(header)} bytes, shorter than an IDX header of {4 * (1 + axes)}")
    magic, *lengths = struct.unpack(f">{1 + axes}i", header)
    if magic != 0x0800 + axes:
        raise ConfigError(f"{path}: magic number {magic}; expected {0x0800 + axes} (unsigned bytes, {axes} axes)")
    shape = "x".join(map(str, lengths))
    if min(lengths) < 0:
        raise ConfigError(f"{path}: the header says {shape}; lengths are 0 or more")
    free = psutil.virtual_memory().available
    if (size := math.prod(lengths)) > free // 2:  # twice: as it is read, and as it is copied
        raise ConfigError(f"{path}: the header says {shape} = {size:,} bytes; {free:,} bytes of memory are free")
    return lengths
