"""Long Parquet tables of many series, read some series at a time, so that memory does not grow with their number.

Rows of a series must follow one another, also from file to file. A first pass over the id columns alone tells whether they
do, and how many series there are; what it keeps of each is eight bytes of a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxscore.config import ConfigError
from proxscore.forecasting.columns import Part
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.sources.table import SeriesTableConfig, of_parts, wanted_columns
from proxscore.forecasting.table_files import check_columns, find_files

Predicted = TypeVar("Predicted")
SERIES = 512  # of a batch
ROWS = 65_536  # that are read at a time


@dataclass(frozen=True)
class SeriesStream:
    """A table of many series.

    Attributes:
        config: names its columns.
        files: Parquet files in the order of their rows.
        series: how many there are.
        apart: the first series whose rows do not follow one another, and where they go on; none: all rows do.
    """

    config: SeriesTableConfig
    files: tuple[Path, ...]
    series: int
    apart: str | None

    @classmethod
    def of(cls, config: SeriesTableConfig) -> SeriesStream | None:
        """Look through the ids of a table; none: it is no Parquet table, or one series.

        Raises:
            ConfigError: no such files, or one that cannot be read or lacks a column.
        """
        files = find_files(config.path, "task.data.path")
        if not config.id_columns or not all(file.name.endswith(".parquet") for file in files):
            return None
        columns = wanted_columns(config)
        for file in files:
            check_columns(file, columns)
        seen: set[bytes] = set()
        last: Any = None
        for file, first, table in _read(files, config.id_columns):
            for name, row in _runs(table, config.id_columns):
                if name == last:
                    continue
                last, key = name, hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
                if key in seen:
                    where = f"series {'/'.join(map(str, name))!r} goes on in {file}, row {first + row}"
                    return cls(config, tuple(files), len(seen), where)
                seen.add(key)
        if not seen:
            raise ConfigError(f"task.data.path {config.path}: the table has no rows")
        return cls(config, tuple(files), len(seen), None)

    def each(
        self,
        frequency: str,
        predict: Callable[[SeriesData], Predicted],
        failed: list[tuple[str, str]],
        series: int = SERIES,
    ) -> Iterator[Predicted]:
        """What is predicted of all series, so many at a time, in the order of the table, without those that cannot be.

        Args:
            frequency: of the network that they are for.
            predict: is given some series.
            failed: name and reason of each that cannot be read or predicted are put here.

        Raises:
            ConfigError: as :func:`proxscore.forecasting.sources.table.load` or ``predict``, of the first series, where no series
                of the first batch can be; a file that cannot be read.
        """
        for number, parts in enumerate(self._pieces(series)):
            before = len(failed)
            found = self._tried(list(self._alone(parts)), frequency, predict, failed)
            if not number and not found:
                raise ConfigError(failed[before][1])
            yield from found

    def _tried(
        self,
        named: Sequence[tuple[str, list[Part]]],
        frequency: str,
        predict: Callable[[SeriesData], Predicted],
        failed: list[tuple[str, str]],
    ) -> list[Predicted]:
        """All of them together, or else in halves."""
        try:
            parts = [part for _, own in named for part in own]
            return [predict(of_parts(self.config, parts, frequency))]
        except ConfigError as error:
            if len(named) == 1:
                failed.append((named[0][0], str(error)))
                return []
        half = len(named) // 2
        return [each for some in (named[:half], named[half:]) for each in self._tried(some, frequency, predict, failed)]

    def _alone(self, parts: Sequence[Part]) -> Iterator[tuple[str, list[Part]]]:
        """The name and the rows of each series of some parts."""
        held: list[Part] = []
        last: tuple[Any, ...] | None = None
        for file, first, table in parts:
            runs = list(_runs(table, self.config.id_columns))
            ends = [row for _, row in runs[1:]] + [table.num_rows]
            for (name, row), end in zip(runs, ends, strict=True):
                if last is not None and name != last:
                    yield "/".join(map(str, last)), held
                    held = []
                last, held = name, [*held, (file, first + row, table.slice(row, end - row))]
        if last is not None:
            yield "/".join(map(str, last)), held

    def _pieces(self, series: int) -> Iterator[list[Part]]:
        held: list[Part] = []
        ids, last, begun = self.config.id_columns, None, 0
        for file, first, table in _read(self.files, wanted_columns(self.config)):
            start = 0
            for name, row in _runs(table, ids):
                if name == last:
                    continue
                if begun == series:
                    yield _with(held, file, first + start, table.slice(start, row - start))
                    held, start, begun = [], row, 0
                last, begun = name, begun + 1
            held = _with(held, file, first + start, table.slice(start))
        yield held


def _with(held: Sequence[Part], file: Path, first: int, table: Any) -> list[Part]:
    return [*held, (file, first, table)] if table.num_rows else list(held)


def _read(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Part]:
    """Some rows at a time, of row group after row group."""
    for file in files:
        first = 0
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(ROWS, columns=list(columns)):
                    yield file, first, pa.table(batch)
                    first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{file}: not a readable table: {' '.join(str(error).split())}") from error


def _runs(table: Any, ids: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The ids of each run of equal ones, and the row where it begins."""
    if not table.num_rows:
        return
    columns = []
    for name in ids:
        column = table.column(name).combine_chunks()
        columns.append(column.dictionary_decode() if pa.types.is_dictionary(column.type) else column)
    changed = np.zeros(table.num_rows, dtype=bool)
    changed[0] = True
    for column in columns:
        differs = pc.fill_null(pc.not_equal(column[1:], column[:-1]), True)
        changed[1:] |= differs.to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(changed)
    values = [column.take(pa.array(rows)).to_pylist() for column in columns]
    yield from zip(zip(*values, strict=True), rows.tolist(), strict=True)
