"""Parquet files with an encoded image and a label per row, read row by row in one process.

The cluster reads the same rows through ``vision.ray_data``. Both number the rows of a split's files from 0, in the
order of file name and row, so that one split by seed serves both.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import get_worker_info

from proxscore.config import ConfigError
from proxscore.config.files import check_regular
from proxscore.vision.decoding import Decoder
from proxscore.vision.images import Reader, Source, Targets, View
from proxscore.vision.sources.base import EncodedImageSource
from proxscore.vision.sources.parquet_labels import (
    MOST_CLASSES,
    LabelColumn,
    check_label_type,
    class_names,
    label_column,
    numbered,
)
from proxscore.vision.sources.parquet_values import are_fractions, are_numbers, values_of
from proxscore.vision.splits import Rows

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
_PARTS = {"train": "train", "val": "validation", "test": "test"}


class ParquetConfig(EncodedImageSource):
    """Parquet files with an encoded image and a label per row, read through Ray Data.

    ``path`` is a file, or a folder of files; files whose names start with train, val or test are those splits.
    """

    kind: Literal["parquet"] = "parquet"
    path: Path  # a file, or a folder of shards
    image_column: str = "image"  # of encoded images, or structures with their bytes
    label_column: str = "label"  # of classes, lists of classes, or numbers
    # Their number; needed where labels are integers, and the files' schemas do not name the classes.
    classes: int | None = Field(None, gt=1, le=MOST_CLASSES)

    # What the label column holds. auto: classes, or, where it has lists, labels of which any may hold, or, where it has numbers
    # with a fraction (or lists of these), values.
    targets: Literal["auto", "classes", "labels", "values"] = "auto"

    streamed: ClassVar[bool] = True

    def load(self) -> Source:
        return load(self)


Encoded = bytes | Path | None  # an image: its bytes, the file that has them, or neither


@dataclass(frozen=True)
class RowGroups:
    """Where the rows of some files lie: what a process needs to read rows by number, group by group.

    Attributes:
        files: in the order of their rows.
        column: that holds the encoded images.
        firsts: (G,) number of the first row of each row group, through all files.
        before: (files,) number of row groups before those of each file.
    """

    files: list[Path]
    column: str
    firsts: Rows
    before: Rows

    def images(self, rows: Rows) -> Iterator[tuple[Encoded, str]]:
        """Encoded image and name in errors of each of these rows, in their order; a row group is read once."""
        groups = self.of(rows)
        columns = {group: self.images_of(group) for group in np.unique(groups)}
        for row, group in zip(rows, groups, strict=True):
            yield self.image(columns[group], row, group)

    def of(self, rows: Rows) -> Rows:
        """The row group of each row."""
        return np.searchsorted(self.firsts, rows, side="right") - 1

    def image(self, images: Any, row: int, group: int) -> tuple[Encoded, str]:
        """The encoded image of a row, which may be null, given its group's, and how errors name it."""
        file = self._file(group)
        name = f"{self.files[file]}, row {int(row - self.firsts[self.before[file]])}"
        found = images[int(row - self.firsts[group])].as_py()
        if not isinstance(found, dict):
            return found, name
        encoded, path = found.get("bytes"), found.get("path")
        if encoded is not None or not path:
            return encoded, name
        return self.files[file].parent / path, f"{name}, {path}"

    def _file(self, group: int) -> int:
        return int(np.searchsorted(self.before, group, side="right")) - 1

    def images_of(self, group: int) -> Any:
        """The image column of a row group, binary or structs.

        Raises:
            ConfigError: the file cannot be read any more; names it.
        """
        file = self._file(group)
        try:
            content = pq.ParquetFile(self.files[file])
            return content.read_row_group(int(group - self.before[file]), columns=[self.column]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self.files[file]}: cannot be read: {' '.join(str(error).split())}") from error


class HeldGroups:
    """Encoded images by row, of row groups that are read when they are needed, and held while they may be needed again."""

    def __init__(self, groups: RowGroups) -> None:
        self._groups = groups
        self._columns: OrderedDict[int, Any] = OrderedDict()  # by group, those used last at the end
        self._most: int | None = None  # bytes to hold
        self._mixed = False  # whether rows were ever asked for in another order than theirs

    def images(self, rows: Rows) -> list[tuple[Encoded, str]]:
        """Encoded image and name in errors of each of these rows, in their order."""
        groups = self._groups.of(rows)
        self._mixed |= bool(np.any(rows[1:] < rows[:-1]))
        found: dict[int, tuple[Encoded, str]] = {}
        for group in np.unique(groups).tolist():
            column = self._column(group)
            for place in np.flatnonzero(groups == group).tolist():
                found[place] = self._groups.image(column, int(rows[place]), group)
        return [found[place] for place in range(len(rows))]

    def _column(self, group: int) -> Any:
        column = self._columns.pop(group, None)
        if column is None:
            if not self._mixed:
                self._columns.clear()
            column = self._groups.images_of(group)
        self._columns[group] = column
        if self._most is None:  # of the first group on; processes of a DataLoader share it
            loader = get_worker_info()
            self._most = psutil.virtual_memory().available // (2 * (loader.num_workers if loader else 1))
        while len(self._columns) > 1 and sum(each.nbytes for each in self._columns.values()) > self._most:
            self._columns.popitem(last=False)
        return column


class ParquetReader(Reader):
    """Rows of some Parquet files.

    Labels are read at once; of the encoded images the row groups that rows are asked of. In the rows' order, as evaluation
    reads them, one group is held at a time. In another, each image may be of another group: groups are held, those used last,
    up to half of the memory that is free; a training set larger than that belongs on the cluster's path. Copies sent to other
    processes leave the images behind.

    Args:
        scans: of the files, in the order of their rows.
        labels: of all rows.
        column: that holds the images.
        decoder: how bytes become images.

    Attributes:
        labels: (N,) classes; (N, C) of 0 and 1, where rows have lists of labels; (N, D) numbers.
    """

    decodes = True

    def __init__(self, scans: list[Scan], labels: NDArray[Any], column: str, decoder: Decoder) -> None:
        self.decoder, self.labels = decoder, labels
        groups = [scan.groups for scan in scans]
        firsts = np.cumsum(np.concatenate([[0], *groups]))[:-1].astype(np.int64)
        before = np.cumsum([0, *map(len, groups)])[:-1].astype(np.int64)
        self.groups = RowGroups([scan.labels.path for scan in scans], column, firsts, before)
        self._held = HeldGroups(self.groups)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": HeldGroups(self.groups)}

    def read(self, rows: Rows, view: View | None = None) -> tuple[Tensor, Rows]:
        """See :meth:`Reader.read`; raises ConfigError naming file and row of an image that cannot be decoded."""
        return self.decoder.batch(self._held.images(rows), view)


def load(config: ParquetConfig) -> Source:
    """One pool from the file or files, or, where their names start with train, val or test, a pool per split.

    Raises:
        ConfigError: no such path, no Parquet file there, a shard or a column missing, a column of a wrong type, a label that
            is null, unknown or outside 0..classes-1. File and row are named.
    """
    path = config.path.expanduser().absolute()
    decoder = Decoder.of(config)
    parts = {part: [scan(file, config) for file in files] for part, files in _files(path).items()}
    for part, scans in parts.items():
        if not sum(len(each.labels.values) for each in scans):
            raise ConfigError(f"task.data.path {path}: the {part} files have no rows")
    columns = [each.labels for scans in parts.values() for each in scans]
    targets = _targets(config, columns[0])
    for column in columns:
        if (other := _targets(config, column)) != targets:
            raise ConfigError(
                f"{column.path}: column {config.label_column!r} is {column.values.type}, which are {other}; those of "
                f"{columns[0].path.name} are {targets}"
            )
    labels: dict[str, list[NDArray[Any]]]
    if targets == "values":
        labels = {
            part: [values_of(each.labels, config.label_column) for each in scans] for part, scans in parts.items()
        }
        names = _value_names(config, columns, labels)
    else:
        names = class_names(columns, [each.labels for each in parts["train"]], config.classes)
        labels = {part: [numbered(each.labels, names) for each in scans] for part, scans in parts.items()}
    pools: dict[str, Reader] = {
        part: ParquetReader(scans, np.concatenate(labels[part]), config.image_column, decoder)
        for part, scans in parts.items()
    }
    return Source(pools, names, (config.channels, config.size, config.size), targets)


def _targets(config: ParquetConfig, column: LabelColumn) -> Targets:
    """What a label column holds.

    Raises:
        ConfigError: it is not what ``task.data.targets`` says.
    """
    kind = column.values.type
    found: Targets = "values" if are_fractions(kind) else "labels" if column.listed else "classes"
    if config.targets in ("auto", found) or (config.targets == "values" and are_numbers(kind)):
        return found if config.targets == "auto" else config.targets
    raise ConfigError(
        f"{column.path}: column {config.label_column!r} is {kind}, which are {found}, and task.data.targets is "
        f"{config.targets}: leave it out"
    )


def _value_names(
    config: ParquetConfig, columns: list[LabelColumn], values: Mapping[str, list[NDArray[Any]]]
) -> tuple[str, ...]:
    """What the numbers of a row are called: as their column, numbered where there are several."""
    counts = [each.shape[1] for part in values.values() for each in part]
    for column, count in zip(columns, counts, strict=True):
        if count != counts[0]:
            raise ConfigError(
                f"{column.path}: {config.label_column} has {count} numbers per row; other files have {counts[0]}"
            )
    name = config.label_column
    return (name,) if counts[0] == 1 else tuple(f"{name}_{place}" for place in range(counts[0]))


def _files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise ConfigError(f"task.data.path {path}: no such file or folder")
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise ConfigError(f"task.data.path {path}: no file named *.parquet in it")
    _check_shards(files)
    named = [next((part for start, part in _PARTS.items() if file.name.startswith(start)), None) for file in files]
    if not any(named):
        return {"train": files}
    if None in named:
        stray = files[named.index(None)]
        raise ConfigError(f"{stray}: other files are named by split; its name must start with train, val or test too")
    if "train" not in named:
        raise ConfigError(f"task.data.path {path}: no file whose name starts with train")
    parts = [part for part in _PARTS.values() if part in named]
    return {part: [file for file, own in zip(files, named, strict=True) if own == part] for part in parts}


def _check_shards(files: list[Path]) -> None:
    """Raise ConfigError for a file that is missing among those named ``...-00001-of-00003.parquet``."""
    present = {file.name for file in files}
    sets = {(named["stem"], named["count"]): file for file in files if (named := _SHARD.fullmatch(file.name))}
    for (stem, count), file in sets.items():
        for number in range(int(count)):
            shard = f"{stem}-{number:05d}-of-{count}.parquet"
            if shard not in present:
                raise ConfigError(f"{file.parent}: {shard} is missing; {file.name} is one of {int(count)}")


@dataclass(frozen=True)
class Scan:
    """What is read of a file at once: its labels, and the rows of each of its row groups (G,)."""

    labels: LabelColumn
    groups: Rows


def scan(path: Path, config: ParquetConfig) -> Scan:
    """Check the columns of a file, and read its labels.

    Raises:
        ConfigError: no Parquet file, or a column that is missing or of a wrong type; names it.
    """
    try:
        check_regular(path)
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        for column in (config.image_column, config.label_column):
            if column not in schema.names:
                raise ConfigError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}")
        _check_image_type(path, config.image_column, schema.field(config.image_column).type)
        check_label_type(path, config.label_column, schema.field(config.label_column).type)
        labels = file.read(columns=[config.label_column]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from error
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return Scan(label_column(path, config.label_column, labels, schema.metadata), np.array(groups, dtype=np.int64))


def _check_image_type(path: Path, column: str, kind: Any) -> None:
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {"bytes": kind}
    binary, text = fields.get("bytes", pa.null()), fields.get("path", pa.string())
    readable = pa.types.is_binary(binary) or pa.types.is_large_binary(binary)
    if pa.types.is_struct(kind) and "path" in fields:  # images beside the table: bytes may all be null
        readable |= pa.types.is_null(binary)
    if not (readable and (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_null(text))):
        expected = "encoded images: binary, or a struct of a binary field 'bytes' and a text 'path'"
        raise ConfigError(f"{path}: column {column!r} is {kind}; expected {expected}")
