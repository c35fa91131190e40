"""Series from a long table: one row per series and time.

What is done with rows that are not as they should be:

* out of order in time within their series: refused, or ordered with ``sort: true``;
* two of one series at one step, or off the grid of the frequency: refused;
* a step without a row: its target is missing, and it is counted; with covariates, which have no value there, refused;
* a target that is null or NaN: missing, and counted; one that is no number: refused;
* after the last target of a series: its future, which gives known covariates and is not part of the series;
* a series without a target: refused; one whose targets are all equal: kept, counted, and warned of;
* a covariate or static feature that is null or NaN: refused; a static feature that changes within a series: refused;
* series of different frequencies: refused.

Refusals name the file and the row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from gluonts.time_feature import get_seasonality
from numpy.typing import NDArray

from proxscore.config import ConfigError, SeriesTableConfig
from proxscore.forecasting.columns import Columns, find_files
from proxscore.forecasting.frequencies import Grid, Times, infer
from proxscore.forecasting.series import Series, SeriesData

_SPARSEST = 100  # steps per row, above which a frequency or a timestamp must be wrong


def load(config: SeriesTableConfig) -> SeriesData:
    """The series of a table, in the order in which they first appear.

    A series is called by its id columns, joined by "/", or by the target column where the table is one series.

    Raises:
        ConfigError: as the module says; or a file, column or setting at fault. One line names it.
    """
    features = [*config.known_covariates, *config.past_covariates]
    _check_names(config, features)
    texts = list(dict.fromkeys([*config.id_columns, *config.static_categories]))
    numeric = [config.target_column, *features, *config.static_reals]
    columns = Columns(
        find_files(config.path, "task.data.path"), [config.timestamp_column, *texts, *numeric], texts=texts
    )
    if not len(columns):
        raise ConfigError(f"task.data.path {config.path}: the table has no rows")
    table = _Table(
        columns=columns,
        times=columns.times(config.timestamp_column),
        target=columns.numbers(config.target_column),
        known={name: columns.numbers(name) for name in config.known_covariates},
        past={name: columns.numbers(name) for name in config.past_covariates},
    )
    groups = _groups([columns.texts(name) for name in config.id_columns], config.target_column, len(columns))
    groups = {name: _in_order(table, name, rows, config.sort) for name, rows in groups.items()}
    grid = Grid.of(config.frequency, "task.data.frequency") if config.frequency else _common_grid(table, groups)
    codes = {name: _codes(columns, name, groups) for name in config.static_categories}
    reals = {name: _constants(columns, name, columns.numbers(name), groups) for name in config.static_reals}
    series, filled, future = [], 0, 0
    for position, (name, rows) in enumerate(groups.items()):
        body, gaps, beyond = _series(table, grid, name, rows)
        categories = tuple(int(values[position]) for _, values in codes.values())
        static = np.array([values[position] for values in reals.values()], dtype=np.float32)
        series.append(Series(name, *body, categories, static))
        filled, future = filled + gaps, future + beyond
    return SeriesData(
        tuple(series),
        frequency=grid.frequency,
        season=config.season or get_seasonality(grid.frequency),
        known=tuple(config.known_covariates),
        past=tuple(config.past_covariates),
        categories={name: names for name, (names, _) in codes.items()},
        static_real=tuple(config.static_reals),
        details={
            "source": "table",
            "files": [str(file) for file in columns.files],
            "rows": len(columns),
            "filled_gaps": filled,
            "future_rows": future,
            "constant_series": _constant(series),
        },
    )


@dataclass(frozen=True)
class _Table:
    columns: Columns
    times: Times
    target: NDArray[np.float64]
    known: dict[str, NDArray[np.float64]]
    past: dict[str, NDArray[np.float64]]

    def where(self, row: int | np.integer[Any], name: str) -> str:
        return f"{self.columns.where(int(row))}, series {name!r}"


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


def _in_order(table: _Table, name: str, rows: Rows, sort: bool) -> Rows:
    """The rows of a series, ascending in time."""
    times = table.times[rows]
    back = np.flatnonzero(times[1:] < times[:-1])
    if not back.size:
        return rows
    if sort:
        return rows[np.argsort(times, kind="stable")]
    at = int(back[0]) + 1
    raise ConfigError(
        f"{table.where(rows[at], name)}: its time {_text(times[at])} is before {_text(times[at - 1])} of the row before; "
        "order the rows by time, or set task.data.sort: true"
    )


def _common_grid(table: _Table, groups: dict[str, Rows]) -> Grid:
    """The frequency that the timestamps of every series tell; series too short to tell take it from the others."""
    first: tuple[str, Grid] | None = None
    for name, rows in groups.items():
        times = np.unique(table.times[rows])
        grid = infer(times)
        if grid is None and len(times) >= 3:
            raise ConfigError(
                f"{table.where(rows[0], name)}: its timestamps tell no frequency; set task.data.frequency (h, D, ME, ...)"
            )
        if grid is None:
            continue
        if first is not None and grid != first[1]:
            raise ConfigError(
                f"{table.where(rows[0], name)}: the frequency is {grid.frequency}, and that of series {first[0]!r} is "
                f"{first[1].frequency}; a table must have one frequency: split it, or set task.data.frequency"
            )
        first = first or (name, grid)
    if first is None:
        raise ConfigError("task.data.frequency: no series has three rows, which would tell it; set it (h, D, ME, ...)")
    return first[1]


Body = tuple[pd.Period, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def _series(table: _Table, grid: Grid, name: str, rows: Rows) -> tuple[Body, int, int]:
    """Start, target, known and past covariates of a series; the steps filled as missing; the rows of its future."""
    steps = _steps(table, grid, name, rows)
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
    return (grid.start(table.times[rows[0]]), values, known, past), length - inside, len(rows) - inside


def _steps(table: _Table, grid: Grid, name: str, rows: Rows) -> Rows:
    times = table.times[rows]
    steps, exact = grid.steps(times)
    if not exact.all():
        at = int(np.argmin(exact))
        raise ConfigError(
            f"{table.where(rows[at], name)}: time {_text(times[at])} is no step of {grid.frequency} from {_text(times[0])}; "
            "correct it, or set task.data.frequency"
        )
    twice = np.flatnonzero(np.diff(steps) == 0)
    if twice.size:
        at = int(twice[0])
        raise ConfigError(
            f"{table.where(rows[at + 1], name)}: time {_text(times[at + 1])} is in the same step of {grid.frequency} as "
            f"{_text(times[at])} of row {table.columns.where(int(rows[at])).rpartition('row ')[2]}; keep one of the two"
        )
    if steps[-1] >= _SPARSEST * len(steps):
        raise ConfigError(
            f"{table.where(rows[-1], name)}: {len(steps)} rows over {steps[-1] + 1} steps of {grid.frequency}, from "
            f"{_text(times[0])} to {_text(times[-1])}; correct the times, or set task.data.frequency"
        )
    return steps


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
            f"{table.where(rows[at], name)}: no row for the step after {_text(table.times[rows[at]])}, so covariate "
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


def _text(time: np.datetime64) -> str:
    return str(pd.Timestamp(time))
