"""Parquet files with an encoded image and an integer label per row, read row by row in one process.

The cluster reads the same rows through ``vision.ray_data``. Both number the rows of a split's files from 0, in the
order of file name and row, so that one split by seed serves both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field
from torch import Tensor
from torch.utils.data import get_worker_info

from proxscore.config import ConfigError
from proxscore.config.files import check_regular
from proxscore.vision.decoding import Decoder
from proxscore.vision.images import Reader, Source, check_labels
from proxscore.vision.sources.base import EncodedImageSource
from proxscore.vision.splits import Rows

_PARTS = {"train": "train", "val": "validation", "test": "test"}


class ParquetConfig(EncodedImageSource):
    """Parquet files with an encoded image and an integer label per row, read through Ray Data.

    ``path`` is a file, or a folder of files; files whose names start with train, val or test are those splits.
    """

    kind: Literal["parquet"] = "parquet"
    path: Path
    image_column: str = "image"
    label_column: str = "label"
    classes: int = Field(gt=1, le=1_000_000)

    streamed: ClassVar[bool] = True

    def load(self) -> Source:
        return load(self)


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

    def images(self, rows: Rows) -> Iterator[tuple[bytes | None, str]]:
        """Encoded image and name in errors of each of these rows, in their order; a row group is read once."""
        groups = self.of(rows)
        columns = {group: self.images_of(group) for group in np.unique(groups)}
        for row, group in zip(rows, groups, strict=True):
            yield self.image(columns[group], row, group)

    def of(self, rows: Rows) -> Rows:
        """The row group of each row."""
        return np.searchsorted(self.firsts, rows, side="right") - 1

    def image(self, images: Any, row: int, group: int) -> tuple[bytes | None, str]:
        """The encoded image of a row, which may be null, given its group's, and how errors name it."""
        file = self._file(group)
        name = f"{self.files[file]}, row {int(row - self.firsts[self.before[file]])}"
        return images[int(row - self.firsts[group])].as_py(), name

    def _file(self, group: int) -> int:
        return int(np.searchsorted(self.before, group, side="right")) - 1

    def images_of(self, group: int) -> Any:
        """The encoded images of a row group, as an Arrow column.

        Raises:
            ConfigError: the file cannot be read any more; names it.
        """
        file = self._file(group)
        try:
            content = pq.ParquetFile(self.files[file])
            return encoded(content.read_row_group(int(group - self.before[file]), columns=[self.column]).column(0))
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self.files[file]}: cannot be read: {' '.join(str(error).split())}") from error


class HeldGroups:
    """Encoded images by row, of row groups that are read when they are needed, and held while they may be needed again."""

    def __init__(self, groups: RowGroups) -> None:
        self._groups = groups
        self._columns: OrderedDict[int, Any] = OrderedDict()  # by group, those used last at the end
        self._most: int | None = None  # bytes to hold
        self._mixed = False  # whether rows were ever asked for in another order than theirs

    def images(self, rows: Rows) -> list[tuple[bytes | None, str]]:
        """Encoded image and name in errors of each of these rows, in their order."""
        groups = self._groups.of(rows)
        self._mixed |= bool(np.any(rows[1:] < rows[:-1]))
        found: dict[int, tuple[bytes | None, str]] = {}
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
        files: in the order of their rows.
        config: column names and number of classes.
        decoder: how bytes become images.
    """

    decodes = True

    def __init__(self, files: list[Path], config: ParquetConfig, decoder: Decoder) -> None:
        self.decoder = decoder
        scans = [_scan(path, config) for path in files]
        self.labels = np.concatenate([labels for labels, _ in scans])
        groups = [sizes for _, sizes in scans]
        firsts = np.cumsum(np.concatenate([[0], *groups]))[:-1].astype(np.int64)
        before = np.cumsum([0, *map(len, groups)])[:-1].astype(np.int64)
        self.groups = RowGroups(files, config.image_column, firsts, before)
        self._held = HeldGroups(self.groups)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": HeldGroups(self.groups)}

    def read(self, rows: Rows) -> tuple[Tensor, Rows]:
        """See :meth:`Reader.read`; raises ConfigError naming file and row of an image that cannot be decoded."""
        return self.decoder.batch(self._held.images(rows))


def load(config: ParquetConfig) -> Source:
    """One pool from the file or files, or, where their names start with train, val or test, a pool per split.

    Raises:
        ConfigError: no such path, no Parquet file there, a column missing or of a wrong type, a label that is null or
            outside 0..classes-1. File and row are named.
    """
    path = config.path.expanduser().absolute()
    decoder = Decoder.of(config)
    pools: dict[str, Reader] = {part: ParquetReader(files, config, decoder) for part, files in _files(path).items()}
    for part, reader in pools.items():
        if not len(reader.labels):
            raise ConfigError(f"task.data.path {path}: the {part} files have no rows")
    return Source(pools, tuple(str(c) for c in range(config.classes)), (config.channels, config.size, config.size))


def encoded(column: Any) -> Any:
    """The bytes of an image column: binary itself, or the field ``bytes`` of a struct, as Hugging Face writes it."""
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise ConfigError(f"task.data.path {path}: no such file or folder")
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise ConfigError(f"task.data.path {path}: no file named *.parquet in it")
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


def _scan(path: Path, config: ParquetConfig) -> tuple[Rows, Rows]:
    """Checked labels of a file, and the rows of each of its row groups."""
    try:
        check_regular(path)
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        for column in (config.image_column, config.label_column):
            if column not in schema.names:
                raise ConfigError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}")
        _check_types(path, config, schema)
        labels = file.read(columns=[config.label_column]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from error
    if labels.null_count:
        row = pc.index(labels.is_null(), True).as_py()
        raise ConfigError(f"{path}, row {row}: the label is null; expected 0..{config.classes - 1}")
    values = labels.to_numpy()
    check_labels(values, config.classes, lambda row: f"{path}, row {row}")
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return values.astype(np.int64), np.array(groups, dtype=np.int64)


def _check_types(path: Path, config: ParquetConfig, schema: Any) -> None:
    kind = schema.field(config.label_column).type
    if not pa.types.is_integer(kind):
        raise ConfigError(f"{path}: column {config.label_column!r} is {kind}; labels must be integers")
    kind = image = schema.field(config.image_column).type
    if pa.types.is_struct(kind):
        image = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        expected = "encoded images: binary, or a struct with a binary field 'bytes'"
        raise ConfigError(f"{path}: column {config.image_column!r} is {kind}; expected {expected}")
