"""Series from a long table: one row per series and time.

What is done with rows that are not as they should be:

* out of order in time within their series: refused, or ordered with ``sort: true``;
* two of one series at one step, or off the grid of the frequency: refused;
* a step without a row: its target is missing, and it is counted; with covariates, which have no value there, refused;
* a target that is null or NaN: missing, and counted; one that is no number: refused;
* after the last target of a series: its future, which gives known covariates and is not part of the series;
* a series without a target: refused; one whose targets are all equal: kept, counted, and warned of;
* a covariate or static feature that is null or NaN: refused; a static feature that changes within a series: refused;
* series of different frequencies: refused;
* timestamps with a zone: days and longer follow its clock, hours and shorter the instants, and forecasts are in it again.
  Text has offsets and no zone: where they change (summer time), ``time_zone`` says which clock days follow. Timestamps
  with and without a zone together: refused;
* stamps anywhere in their weeks, months, quarters or years: kept, and those of forecasts stand at the same place; where
  they have none in common, at the beginning, which is warned of.

Refusals name the file and the row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from proxscore.config import ConfigError
from proxscore.forecasting.clocks import NANOSECONDS, known
from proxscore.forecasting.columns import Columns, Part
from proxscore.forecasting.series import Series, SeriesData
from proxscore.forecasting.sources.base import WindowedSeries
from proxscore.forecasting.table_files import check_columns, find_files
from proxscore.forecasting.timelines import Line, Rowwise, Timelines, in_order, timelines


class SeriesTableConfig(WindowedSeries):
    """A long table, one row per series and time: Parquet, CSV or Arrow files."""

    kind: Literal["table"] = "table"
    path: Path  # a file, or a folder of files
    id_columns: list[str] = Field([])  # together the name of a series; none: the table is one series
    timestamp_column: str = "timestamp"  # of the steps' times
    target_column: str = "target"  # of the values to forecast
    known_covariates: list[str] = Field([])  # known in advance; rows past the last target give their future
    past_covariates: list[str] = Field([])  # known only when their step is over
    static_categories: list[str] = Field([])  # text, constant in each series; an id column may be one
    static_reals: list[str] = Field([])  # numbers, constant in each series
    frequency: str | None = None  # a pandas alias (h, 30min, D, ME); null: told from the timestamps
    time_zone: str | None = None  # whose clock days and longer follow (Europe/Berlin); null: that of the timestamps
    sort: bool = False  # order rows by time; false: rows out of order are an error

    def load(self, frequency: str | None = None) -> SeriesData:
        return load(self, frequency)


def load(config: SeriesTableConfig, trained: str | None = None) -> SeriesData:
    """The series of a table, in the order in which they first appear.

    A series is called by its id columns, joined by "/", or by the target column where the table is one series.

    Args:
        config: its section of the configuration.
        trained: the frequency of the network that it is for, taken where too few timestamps tell one.

    Raises:
        ConfigError: as the module says; or a file, column or setting at fault. One line names it.
    """
    texts, numbers = _wanted(config)
    columns = Columns(
        find_files(config.path, "task.data.path"),
        [config.timestamp_column, *texts, *numbers],
        texts=[config.timestamp_column, *texts],
    )
    if not len(columns):
        raise ConfigError(f"task.data.path {config.path}: the table has no rows")
    return _series_of(config, columns, trained)


def of_table(config: SeriesTableConfig, table: pa.Table, trained: str | None = None) -> SeriesData:
    """The series of an Arrow table in memory; as :func:`load`, whose ``path`` is not looked at."""
    texts, numbers = _wanted(config)
    names = [config.timestamp_column, *texts, *numbers]
    columns = Columns.of_table(table, names, texts=[config.timestamp_column, *texts])
    if not len(columns):
        raise ConfigError("the table has no rows")
    return _series_of(config, columns, trained)


def of_parts(config: SeriesTableConfig, parts: Sequence[Part], trained: str | None = None) -> SeriesData:
    """The series of parts of files; as :func:`load`, whose ``path`` is not looked at."""
    texts, numbers = _wanted(config)
    names = [config.timestamp_column, *texts, *numbers]
    return _series_of(config, Columns.of_parts(parts, names, texts=[config.timestamp_column, *texts]), trained)


def wanted_columns(config: SeriesTableConfig) -> list[str]:
    """Names of the columns that a section reads.

    Raises:
        ConfigError: one that has two parts, or a time zone that is not known.
    """
    texts, numbers = _wanted(config)
    return list(dict.fromkeys([config.timestamp_column, *texts, *numbers]))


def read_table(config: SeriesTableConfig, path: Path, series: Sequence[tuple[Any, ...]] = ()) -> pa.Table:
    """The columns that a section names of the files of a table, ids and categories as texts; nothing else is checked.

    Args:
        series: ids of those that are wanted; others may be left out.

    Raises:
        ConfigError: no such files, or one that lacks a column.
    """
    texts, _ = _wanted(config)
    wanted = {name: {str(each[place]) for each in series} for place, name in enumerate(config.id_columns) if series}
    stamps = [config.timestamp_column, *texts]
    return Columns(find_files(path, "the table"), wanted_columns(config), texts=stamps, wanted=wanted).table(texts)


def read_ids(config: SeriesTableConfig, path: Path) -> pa.Table | None:
    """The id columns of all rows, as texts, once the others are known to be there; none: the table is one series.

    Raises:
        ConfigError: no such files, or one that lacks a column.
    """
    _wanted(config)
    files = find_files(path, "the table")
    if not config.id_columns:
        return None
    for file in files:
        if file.name.endswith(".parquet"):
            check_columns(file, wanted_columns(config))
    return Columns(files, config.id_columns, texts=config.id_columns).table(config.id_columns)


def _wanted(config: SeriesTableConfig) -> tuple[list[str], list[str]]:
    """Columns of text, and of numbers.

    Raises:
        ConfigError: one that has two parts, or a time zone that is not known.
    """
    features = [*config.known_covariates, *config.past_covariates]
    _check_names(config, features)
    texts = list(dict.fromkeys([*config.id_columns, *config.static_categories]))
    numeric = [config.target_column, *features, *config.static_reals]
    if config.time_zone is not None and not known(config.time_zone):
        raise ConfigError(f"task.data.time_zone is {config.time_zone!r}, which is not known; Europe/Berlin would be")
    return texts, numeric


def _series_of(config: SeriesTableConfig, columns: Columns, trained: str | None) -> SeriesData:
    from gluonts.time_feature import get_seasonality  # takes seconds

    stamps = columns.times(config.timestamp_column, config.time_zone)
    table = _Table(
        columns=columns,
        rowwise=Rowwise(stamps, columns.where),
        target=columns.numbers(config.target_column),
        known={name: columns.numbers(name) for name in config.known_covariates},
        past={name: columns.numbers(name) for name in config.past_covariates},
    )
    groups = _groups([columns.texts(name) for name in config.id_columns], config.target_column, len(columns))
    groups = {name: in_order(table.rowwise, name, rows, config.sort) for name, rows in groups.items()}
    placed = timelines(table.rowwise, groups, config.frequency, trained)
    frequency = placed.grid.frequency
    _warn_of_places(placed)
    codes = {name: _codes(columns, name, groups) for name in config.static_categories}
    reals = {name: _constants(columns, name, columns.numbers(name), groups) for name in config.static_reals}
    series, filled, future = [], 0, 0
    for position, (name, rows) in enumerate(groups.items()):
        line = placed.lines[name]
        body, gaps, beyond = _series(table, line, name, rows)
        categories = tuple(int(values[position]) for _, values in codes.values())
        static = np.array([values[position] for values in reals.values()], dtype=np.float32)
        series.append(Series(name, line.start, *body, categories, static, line.marks))
        filled, future = filled + gaps, future + beyond
    return SeriesData(
        tuple(series),
        frequency=frequency,
        season=config.season or get_seasonality(frequency),
        known=tuple(config.known_covariates),
        past=tuple(config.past_covariates),
        categories={name: names for name, (names, _) in codes.items()},
        static_real=tuple(config.static_reals),
        stamps=stamps.kind if placed.grid.days or pa.types.is_timestamp(stamps.kind) else NANOSECONDS,
        details={
            "source": "table",
            "files": [str(file) for file in columns.files],
            "rows": len(columns),
            "filled_gaps": filled,
            "future_rows": future,
            "constant_series": _constant(series),
            "time_zones": list(stamps.zones),
        },
    )


@dataclass(frozen=True)
class _Table:
    columns: Columns
    rowwise: Rowwise
    target: NDArray[np.float64]
    known: dict[str, NDArray[np.float64]]
    past: dict[str, NDArray[np.float64]]

    def where(self, row: int | np.integer[Any], name: str) -> str:
        return self.rowwise.named(row, name)


Rows = NDArray[np.int64]


def _check_names(config: SeriesTableConfig, features: Sequence[str]) -> None:
    """Each column has one part, except that ids may be categories too."""
    taken = {config.timestamp_column: "timestamp_column"}
    for setting, names in (
        ("id_columns", config.id_columns),
        ("target_column", [config.target_column]),
        ("known_covariates", config.known_covariates),
        ("past_covariates", config.past_covariates),
        ("static_reals", config.static_reals),
    ):
        for name in names:
            if name in taken:
                raise ConfigError(f"task.data.{setting}: column {name!r} is in {taken[name]} too; name it once")
            taken[name] = setting
    for position, name in enumerate(config.static_categories):
        if name in config.static_categories[:position] or taken.get(name, "id_columns") != "id_columns":
            other = taken.get(name, "static_categories")
            raise ConfigError(f"task.data.static_categories: column {name!r} is in {other} too; name it once")


def _groups(ids: Sequence[NDArray[Any]], alone: str, count: int) -> dict[str, Rows]:
    """Name of each series -> its rows, in the order of the table."""
    if not ids:
        return {alone: np.arange(count, dtype=np.int64)}
    numbers = pd.DataFrame(dict(enumerate(ids))).groupby(list(range(len(ids))), sort=False).ngroup().to_numpy()
    order = np.argsort(numbers, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    groups = {"/".join(str(column[rows[0]]) for column in ids): rows.astype(np.int64) for rows in parts}
    if len(groups) < len(parts):
        raise ConfigError('task.data.id_columns: two series have one name when their ids are joined by "/"; rename one')
    return groups


Body = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def _series(table: _Table, line: Line, name: str, rows: Rows) -> tuple[Body, int, int]:
    """Target, known and past covariates of a series; the steps filled as missing; the rows of its future."""
    steps = line.steps
    target = table.target[rows]
    filled = np.flatnonzero(~np.isnan(target))
    if not filled.size:
        raise ConfigError(f"{table.where(rows[0], name)}: the series has no target value; give it one, or leave it out")
    inside = int(filled[-1]) + 1  # rows of the series; after them its future
    length = int(steps[inside - 1]) + 1
    values = np.full(length, np.nan, dtype=np.float32)
    values[steps[:inside]] = target[:inside]
    known = _covariates(table, table.known, name, rows, steps)
    past = _covariates(table, table.past, name, rows[:inside], steps[:inside])
    return (values, known, past), length - inside, len(rows) - inside


def _covariates(
    table: _Table, covariates: dict[str, NDArray[np.float64]], name: str, rows: Rows, steps: Rows
) -> NDArray[np.float32]:
    """(number of covariates, steps) values, of which none may be missing."""
    for column, values in covariates.items():
        missing = np.flatnonzero(np.isnan(values[rows]))
        if missing.size:
            raise ConfigError(
                f"{table.where(rows[missing[0]], name)}: covariate {column} is missing; every row needs it"
            )
    if covariates and len(steps) <= steps[-1]:
        at = int(np.flatnonzero(np.diff(steps) > 1)[0])
        raise ConfigError(
            f"{table.where(rows[at], name)}: no row for the step after {table.rowwise.text(rows[at])}, so covariate "
            f"{next(iter(covariates))} is missing there; add the rows, with a null target"
        )
    return np.array([values[rows] for values in covariates.values()], dtype=np.float32).reshape(-1, int(steps[-1]) + 1)


def _codes(columns: Columns, name: str, groups: dict[str, Rows]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The values of a static category, sorted, and the code of each series."""
    values, codes = np.unique(_constants(columns, name, columns.texts(name), groups).astype(str), return_inverse=True)
    return tuple(values.tolist()), codes


def _constants(columns: Columns, name: str, values: NDArray[Any], groups: dict[str, Rows]) -> NDArray[Any]:
    """The value of a static feature for each series."""
    for series, rows in groups.items():
        own = values[rows]
        missing = np.flatnonzero(pd.isna(own))
        if missing.size:
            raise ConfigError(
                f"{columns.where(int(rows[missing[0]]))}, series {series!r}: static feature {name} is missing"
            )
        other = np.flatnonzero(own != own[0])
        if other.size:
            raise ConfigError(
                f"{columns.where(int(rows[other[0]]))}, series {series!r}: static feature {name} is {own[other[0]]!s}, and "
                f"{own[0]!s} in {columns.where(int(rows[0]))}; it must be the same in all rows of a series"
            )
    return np.array([values[rows[0]] for rows in groups.values()])


def _warn_of_places(placed: Timelines) -> None:
    names = [name for name, line in placed.lines.items() if not line.regular]
    if names:
        logging.getLogger(__name__).warning(
            "%d of %d series (the first: %s) have timestamps at no one place in their steps of %s: those of forecasts are at the "
            "beginning",
            *(len(names), len(placed.lines), names[0], placed.grid.frequency),
        )


def _constant(series: Sequence[Series]) -> int:
    """How many series have one value only."""
    names = [each.id for each in series if np.nanmin(each.target) == np.nanmax(each.target)]
    if names:
        logging.getLogger(__name__).warning(
            "%d of %d series are constant (the first: %s); kept, but a scaled error (MASE, MSIS) has no scale there",
            len(names),
            len(series),
            names[0],
        )
    return len(names)
