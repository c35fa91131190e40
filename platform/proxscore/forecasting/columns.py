"""Columns of a table that lies in one file or several: read by pyarrow, checked, and named by file and row in errors.

Rows are counted from 0 in each file; a CSV file's header is no row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.forecasting.clocks import UTC, Stamps, known
from proxscore.forecasting.table_files import check_names, read_file

_LARGEST = float(np.finfo(np.float32).max)

Part = tuple[
    Path, int, Any
]  # a file, the number of the first row of some that follow one another, and these as a table


class Columns:
    """Some columns of the files of a table, whose rows are numbered through all files.

    Args:
        files: in the order of their rows.
        names: columns to read; others are left alone. None: all.
        texts: columns that are text even where all their values look like numbers (001 is not 1).
        wanted: texts by column; rows of Parquet files with other values may be left out, and are not counted then.

    Raises:
        ConfigError: a file that cannot be read, or that lacks a column.
    """

    def __init__(
        self,
        files: Sequence[Path],
        names: Sequence[str] | None = None,
        texts: Sequence[str] = (),
        wanted: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.files = list(files)
        self._hold([read_file(path, names, texts, wanted or {}) for path in self.files])

    @classmethod
    def of_table(cls, table: Any, names: Sequence[str], texts: Sequence[str] = ()) -> Columns:
        """The columns of an Arrow table in memory, which is called "the table" in errors; arguments as above.

        Raises:
            ConfigError: it lacks a column, or has two of a name.
        """
        made = cls([])
        made.files = [Path("the table")]
        check_names(made.files[0], table.column_names, names)
        columns = {name: table.column(name) for name in dict.fromkeys(names)}
        for name in texts:  # numbers that are names; times keep their type
            if pa.types.is_integer(columns[name].type):
                columns[name] = columns[name].cast(pa.string())
        made._hold([pa.table(columns)])
        return made

    @classmethod
    def of_parts(cls, parts: Sequence[Part], names: Sequence[str], texts: Sequence[str] = ()) -> Columns:
        """The columns of parts of files, whose rows are called by their numbers there; arguments as above."""
        made = cls.of_table(
            pa.concat_tables([table for _, _, table in parts], promote_options="permissive"), names, texts
        )
        (whole,) = made._tables
        starts = np.cumsum([0, *(table.num_rows for _, _, table in parts)])
        made.files = [file for file, _, _ in parts]
        made._hold([whole.slice(start, part[2].num_rows) for start, part in zip(starts, parts, strict=False)])
        made._firsts = [first for _, first, _ in parts]
        return made

    def _hold(self, tables: list[Any]) -> None:
        self._tables, self._firsts = tables, [0] * len(tables)
        self._starts = np.cumsum([0, *(table.num_rows for table in self._tables)])

    def table(self, texts: Sequence[str]) -> Any:
        """All rows as one Arrow table, in which these columns are texts."""
        whole = pa.concat_tables(self._tables, promote_options="permissive")
        for name in texts:
            whole = whole.set_column(whole.column_names.index(name), name, whole.column(name).cast(pa.string()))
        return whole

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def names(self) -> list[str]:
        """Names of the columns of the first file."""
        return list(self._tables[0].column_names)

    def where(self, row: int) -> str:
        """Name a row for an error: its file, and its number there."""
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self.files[file]}, row {row - self._starts[file] + self._firsts[file]}"

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column of integers, floats, decimals or booleans as float64; null and NaN are NaN.

        Raises:
            ConfigError: a value that is text, infinite, or too large for float32; file and row are named.
        """
        parts = []
        for first, column in self._parts(name):
            kind = column.type
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                self._refuse_text(name, first, column)
            numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
            if not (numeric or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
                raise ConfigError(f"{self.where(first)}: column {name!r} is {kind}; expected numbers")
            if pa.types.is_boolean(kind):
                column = column.cast(pa.int8())
            parts.append(column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64))
        values = np.concatenate(parts)
        wrong = np.flatnonzero(np.abs(values) > _LARGEST)
        if wrong.size:
            row = int(wrong[0])
            raise ConfigError(f"{self.where(row)}: {name} is {values[row]}; expected a number that float32 can hold")
        return values

    def times(self, name: str, zone: str | None = None) -> Stamps:
        """A column of dates, timestamps or text (ISO 8601, or as 2000/1/31 13:00; with or without an offset as +01:00).

        Args:
            name: of the column; a CSV file's must be among ``texts``, or its offsets are lost.
            zone: whose clock counts, for timestamps that have zones of their own.

        Raises:
            ConfigError: another type, a null, text that is no such time, a time outside 1678..2261, times with a zone among
                times without, or none with a zone where ``zone`` is given.
        """
        parts = []
        for first, column in self._parts(name):
            kind = column.type
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                part = _parsed(column)
            elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
                part = self._typed(name, first, column)
            else:
                raise ConfigError(f"{self.where(first)}: column {name!r} is {kind}; expected dates, timestamps or text")
            unread = np.flatnonzero(np.isnat(part.instants))
            if unread.size:
                row = int(unread[0])
                value = column[row].as_py()
                raise ConfigError(
                    f"{self.where(first + row)}: {name} is {'null' if value is None else repr(value)}; "
                    "expected a time such as 2000-01-31 13:00, from 1678 to 2261"
                )
            parts.append((first, part))
        self._check_zones(name, parts, zone)
        stamps = Stamps.joined([part for _, part in parts])
        return stamps if zone is None else Stamps.of(stamps.instants, zone, stamps.kind)

    def _typed(self, name: str, first: int, column: Any) -> Stamps:
        kind = column.type
        zone = getattr(kind, "tz", None)
        if zone is not None and not known(zone):
            raise ConfigError(f"{self.where(first)}: column {name!r} is of time zone {zone!r}, which is not known")
        years = pc.year(column)
        held = pc.if_else(pc.and_(pc.greater(years, 1677), pc.less(years, 2262)), column, None)
        times = held.cast(pa.timestamp("ns", zone)).to_numpy().astype("datetime64[ns]")
        return Stamps.of(times, zone, pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind)

    def _check_zones(self, name: str, parts: Sequence[tuple[int, Stamps]], zone: str | None) -> None:
        for first, part in parts:
            without = np.flatnonzero(part.codes < 0) if part.zones else np.arange(1)
            if not without.size:
                continue
            row = self.where(first + int(without[0]))
            if zone is not None:
                raise ConfigError(
                    f"{row}: {name} has no time zone; leave out task.data.time_zone, or write them with one"
                )
            zoned = next((f + int(np.argmax(p.codes >= 0)) for f, p in parts if p.zones), None)
            if zoned is not None:
                raise ConfigError(
                    f"{row}: {name} has no time zone, and that of {self.where(zoned)} has one; all or none must have one"
                )

    def texts(self, name: str) -> NDArray[Any]:
        """A column of text, integers, booleans or dates as str.

        Raises:
            ConfigError: a null, or values of another type.
        """
        parts = []
        for first, column in self._parts(name):
            if column.null_count:
                row = first + pc.index(column.is_null(), True).as_py()
                raise ConfigError(f"{self.where(row)}: {name} is null; every row needs a value there")
            try:
                parts.append(np.array(column.cast(pa.string()).to_pylist(), dtype=object))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise ConfigError(f"{self.where(first)}: column {name!r} is {column.type}; expected text") from None
        return np.concatenate(parts)

    def _parts(self, name: str) -> Iterator[tuple[int, Any]]:
        """The column in each file that has rows, and the number of its first row."""
        for first, table in zip(self._starts, self._tables, strict=False):
            if table.num_rows:
                column = table.column(name)
                if pa.types.is_dictionary(column.type):
                    column = column.cast(column.type.value_type)
                yield int(first), column

    def _refuse_text(self, name: str, first: int, column: Any) -> None:
        values = column.to_pylist()
        numeric = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").notna()
        filled = [row for row, value in enumerate(values) if value not in (None, "")]
        row = next((row for row in filled if not numeric[row]), filled[0] if filled else 0)
        raise ConfigError(f"{self.where(first + row)}: {name} is {values[row]!r}, which is text; expected a number")


# Of text: what follows a time of the day. A date's last number is no offset.
_OFFSET = r"[T ]\s*\d{1,2}(?:[:.]?\d{2})*(?:[.,]\d+)?\s*(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)\s*$"


def _parsed(column: Any) -> Stamps:
    """Times from text; NaT where it is none. The year must come first: 01/02/2000 means two days to two readers."""
    texts = pd.Series(column.to_pylist(), dtype=object)
    # A number is a year or a date without dashes; any other counts seconds, or something else, from somewhere.
    texts = texts.where(texts.str.match(r"(?!\s*\d+\.\d*\s*$)\s*(?:\d{4}|\d{8}|\d{4}\D.*|\d{8}[T ].*)\s*$", na=False))
    times = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    if times.isna().any():
        guessed = pd.to_datetime(texts, errors="coerce", utc=True)
        times = guessed if guessed.isna().sum() < times.isna().sum() else times
    times = times.where((times.dt.year > 1677) & (times.dt.year < 2262))  # nanoseconds hold no others
    instants = times.dt.tz_localize(None).to_numpy().astype("datetime64[ns]")
    found = texts.str.extract(_OFFSET, expand=False)
    if found.isna().all():
        return Stamps.of(instants)
    offsets = found.str.replace(":", "").replace({"Z": "+0000", "z": "+0000", "UTC": "+0000", "GMT": "+0000"})
    offsets = offsets.where(offsets.str.len() != 3, offsets + "00")
    codes, names = pd.factorize(offsets)  # -1 where there is none
    lengths = [int(f"{each[0]}1") * (60 * int(each[1:3]) + int(each[3:])) for each in names]
    moved = np.array([*lengths, 0], dtype="timedelta64[m]")[codes]
    zones = tuple(UTC if not length else f"{each[:3]}:{each[3:]}" for each, length in zip(names, lengths, strict=True))
    return Stamps(instants, instants + moved, zones, codes.astype(np.int64))
