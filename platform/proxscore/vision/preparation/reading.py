"""What is at a path: folders of images, IDX files, a Parquet table of other making; CSV and NumPy have files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from proxscore.config import ConfigError
from proxscore.vision.images import MemoryReader, Reader
from proxscore.vision.preparation.arrays import numpy_arrays
from proxscore.vision.preparation.collected import (
    ArrayPictures,
    Collected,
    FilePictures,
    TablePictures,
)
from proxscore.vision.preparation.csv_table import csv_table
from proxscore.vision.sources import parquet
from proxscore.vision.sources.idx import IdxConfig
from proxscore.vision.sources.image_folder import FolderReader, ImageFolderConfig
from proxscore.vision.sources.parquet import ParquetConfig, ParquetReader

_MOST_BYTES = 256  # classes of IDX labels


def collect(
    source: Path, image_column: str = "image", label_column: str = "label", *, numbers: bool = False
) -> Collected:
    """Find the labelled images of a source, whatever of the five forms it has.

    Args:
        source: a folder of class folders, or of ``train``, ``val``, ``test`` with these; a folder of IDX files; a CSV file;
            a NumPy archive; a Parquet file or a folder of such.
        image_column, label_column: of Parquet files.
        numbers: labels are numbers, and no classes.

    Raises:
        ConfigError: nothing is there, or what is there is at fault; one line names file and row.
    """
    if not source.exists():
        raise ConfigError(f"{source}: no such file or folder")
    if source.is_dir():
        if any(source.glob("*.parquet")):
            return table(source, image_column, label_column, numbers=numbers)
        if numbers:
            raise ConfigError(
                f"--numbers: {source} is a folder, whose labels are classes: name a .csv, .npz or .parquet"
            )
        if any(source.glob("*-idx3-ubyte*")):
            return idx(source)
        return folders(source)
    readers = {".csv": csv_table, ".npz": numpy_arrays}
    if source.suffix.lower() in readers:
        return readers[source.suffix.lower()](source, numbers=numbers)
    if source.suffix.lower() == ".parquet":
        return table(source, image_column, label_column, numbers=numbers)
    raise ConfigError(f"{source}: expected a folder, or a file that ends in .csv, .npz or .parquet")


def folders(source: Path) -> Collected:
    """A folder per class, or these under train, val and test: as ``task.data.kind=image_folder`` reads them."""
    found = ImageFolderConfig(path=source).load()
    files: list[Path] = []
    for reader in found.pools.values():
        assert isinstance(reader, FolderReader)
        files += reader.files
    root = source.absolute()
    names = [file.relative_to(root).as_posix() for file in files]
    return _collected(FilePictures(files, names), found.pools, found.classes, "folders of images")


def idx(source: Path) -> Collected:
    """IDX files as ``task.data.kind=idx`` reads them; there are as many classes as the largest label says."""
    found = IdxConfig(path=source, classes=_MOST_BYTES).load()
    parts = []
    for part, reader in found.pools.items():
        assert isinstance(reader, MemoryReader)
        parts.append((f"{source}, {part} images", part, reader.pixels[:, 0].numpy()))
    count = 1 + max(int(reader.labels.max()) for reader in found.pools.values())
    classes = tuple(str(number) for number in range(count))
    return _collected(ArrayPictures(parts), found.pools, classes, "IDX files")


def table(source: Path, image_column: str, label_column: str, *, numbers: bool = False) -> Collected:
    """A Parquet table as ``task.data.kind=parquet`` reads it; integers without names are named by their numbers."""
    targets: Literal["auto", "values"] = "values" if numbers else "auto"
    config = ParquetConfig(path=source, image_column=image_column, label_column=label_column, targets=targets)
    scans = [
        parquet.scan(path, config) for path in ([source] if source.is_file() else sorted(source.glob("*.parquet")))
    ]
    columns = [scan.labels for scan in scans]
    if not (numbers or any(column.names for column in columns) or columns[0].texts):
        largest = max((column.largest() for column in columns), default=-1)
        config = config.model_copy(update={"classes": max(2, largest + 1)})
    found = parquet.load(config)
    tables, counts = [], []
    for reader in found.pools.values():
        assert isinstance(reader, ParquetReader)
        tables.append(reader.groups)
        counts.append(len(reader.labels))
    return _collected(TablePictures(tables, counts), found.pools, found.classes, "Parquet table")


def _collected(
    pictures: FilePictures | ArrayPictures | TablePictures,
    pools: dict[str, Reader],
    classes: tuple[str, ...],
    kind: str,
) -> Collected:
    splits = None if len(pools) == 1 else [part for part, reader in pools.items() for _ in range(len(reader.labels))]
    if any(reader.labels.dtype == np.float32 for reader in pools.values()):
        values = np.concatenate([reader.labels for reader in pools.values()])
        return Collected(pictures, [()] * len(values), classes, splits, False, kind, values)
    labels: list[tuple[int, ...]] = []
    for reader in pools.values():
        if reader.labels.ndim == 2:
            labels += [tuple(np.flatnonzero(row).tolist()) for row in reader.labels]
        else:
            labels += [(label,) for label in reader.labels.tolist()]
    multi = any(reader.labels.ndim == 2 for reader in pools.values())
    return Collected(pictures, labels, classes, splits, multi, kind)
