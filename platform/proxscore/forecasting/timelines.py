"""Rows of series on the steps of one grid: its frequency, the clock that it follows, and each row's step.

Of the two clocks, that of the stamps' own zone and that of instants, days and longer prefer the first, and hours and shorter
the second; the other one is taken where more stamps are at their places on it (days that begin at midnight in UTC, told in the
time of New York; shifts of twelve hours that begin at noon in Berlin).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.forecasting.clocks import UTC, Stamps, Times, nominal
from proxscore.forecasting.frequencies import Grid, infer
from proxscore.forecasting.places import Marks, common_place, place, regular

Rows = NDArray[np.int64]
_SPARSEST = 100  # steps per row, above which a frequency or a timestamp must be wrong


@dataclass(frozen=True)
class Line:
    """The rows of one series on the grid.

    Attributes:
        start: period of the first step.
        steps: (N,) ascending step of each row, from 0.
        marks: timestamps of its steps.
        regular: whether the rows' own timestamps are those.
    """

    start: pd.Period
    steps: Rows
    marks: Marks
    regular: bool


@dataclass(frozen=True)
class Timelines:
    """All series of a table on one grid."""

    grid: Grid
    lines: Mapping[str, Line]

    @property
    def misfits(self) -> int:
        """Steps without a row, and series whose timestamps have no common place in their steps."""
        gaps = sum(int(line.steps[-1]) + 1 - len(line.steps) for line in self.lines.values())
        return gaps + sum(not line.regular for line in self.lines.values())


@dataclass(frozen=True)
class Rowwise:
    """Timestamps of a table's rows, and how errors name a row."""

    stamps: Stamps
    where: Callable[[int], str]

    def named(self, row: int | np.integer[Any], name: str) -> str:
        """A row, by file, number and series."""
        return f"{self.where(int(row))}, series {name!r}"

    def text(self, row: int | np.integer[Any]) -> str:
        """The time that a row shows."""
        return str(pd.Timestamp(self.stamps.shown[row]))


def in_order(rowwise: Rowwise, name: str, rows: Rows, sort: bool) -> Rows:
    """The rows of a series, ascending in time.

    Raises:
        ConfigError: they are not, and are not to be sorted; names the first row.
    """
    times = rowwise.stamps.instants[rows]
    back = np.flatnonzero(times[1:] < times[:-1])
    if not back.size:
        return rows
    if sort:
        return rows[np.argsort(times, kind="stable")]
    at = int(back[0]) + 1
    raise ConfigError(
        f"{rowwise.named(rows[at], name)}: its time {rowwise.text(rows[at])} is before {rowwise.text(rows[at - 1])} of the "
        "row before; order the rows by time, or set task.data.sort: true"
    )


def timelines(
    rowwise: Rowwise, groups: Mapping[str, Rows], frequency: str | None, trained: str | None = None
) -> Timelines:
    """The series of a table on the grid and the clock that fit them.

    Args:
        rowwise: the timestamps.
        groups: rows of each series, ascending in time.
        frequency: a pandas alias; None: told from the timestamps.
        trained: a frequency that is expected, taken where the timestamps do not tell theirs.

    Raises:
        ConfigError: series of several frequencies, or a row that is on no step or on one that another row is on.
    """
    stamps = rowwise.stamps

    def on(wall: bool) -> Timelines:
        grid = Grid.of(frequency, "task.data.frequency") if frequency else _common_grid(rowwise, groups, wall, trained)
        times = {name: _times(stamps, rows, wall) for name, rows in groups.items()}
        lines = {name: _line(rowwise, grid, name, rows, times[name], wall) for name, rows in groups.items()}
        return Timelines(grid, _with_places(lines, times, grid))

    if not stamps.zones:
        return on(True)
    days = (Grid.of(frequency) if frequency else _common_grid(rowwise, groups, True, trained)).days
    try:
        found = on(days)
    except ConfigError:
        other = _if_possible(on, not days)
        if other is not None and not other.misfits:
            return other
        raise
    other = _if_possible(on, not days) if found.misfits else None
    return other if other is not None and other.misfits < found.misfits else found


def _if_possible(on: Callable[[bool], Timelines], wall: bool) -> Timelines | None:
    try:
        return on(wall)
    except ConfigError:
        return None


def _times(stamps: Stamps, rows: Rows, wall: bool) -> Times:
    """The times of a series' rows on a clock."""
    if not stamps.zones or not wall:
        return stamps.instants[rows]
    zone = stamps.zone(rows)
    shown, instants = stamps.shown[rows], stamps.instants[rows]
    same = zone is None or zone == UTC or zone[0] in "+-"
    return shown if same else nominal(shown, instants, str(zone))


def _common_grid(rowwise: Rowwise, groups: Mapping[str, Rows], wall: bool, trained: str | None) -> Grid:
    """The frequency that the timestamps of every series tell; series too short to tell take it from the others."""
    first: tuple[str, Grid] | None = None
    for name, rows in groups.items():
        times = np.unique(_times(rowwise.stamps, rows, wall))
        grid = infer(times)
        if trained is not None:
            grid = _as_trained(grid, times, Grid.of(trained))
        if grid is None and len(times) >= 3:
            raise ConfigError(
                f"{rowwise.named(rows[0], name)}: its timestamps tell no frequency; set task.data.frequency (h, D, ME, ...)"
            )
        if grid is None:
            continue
        if first is not None and grid != first[1]:
            raise ConfigError(
                f"{rowwise.named(rows[0], name)}: the frequency is {grid.frequency}, and that of series {first[0]!r} is "
                f"{first[1].frequency}; a table must have one frequency: split it, or set task.data.frequency"
            )
        first = first or (name, grid)
    if first is None:
        raise ConfigError("task.data.frequency: no series has three rows, which would tell it; set it (h, D, ME, ...)")
    return first[1]


def _as_trained(grid: Grid | None, times: Times, trained: Grid) -> Grid | None:
    """The trained grid, where few timestamps do not tell: too few rows, or days of which it depends on chance whether a
    weekend is among them."""
    if grid is None and len(times) < 3:
        return trained
    if grid is not None and {grid.frequency, trained.frequency} == {"B", "D"} and trained.steps(times)[1].all():
        return trained
    return grid


def _line(rowwise: Rowwise, grid: Grid, name: str, rows: Rows, times: Times, wall: bool) -> Line:
    stamps = rowwise.stamps
    if wall and len(stamps.zones) > 1:
        other = np.flatnonzero(stamps.codes[rows] != stamps.codes[rows[0]])
        if other.size:
            at = rows[other[0]]
            raise ConfigError(
                f"{rowwise.named(at, name)}: its time zone is {stamps.zones[stamps.codes[at]]}, and "
                f"{stamps.zones[stamps.codes[rows[0]]]} in {rowwise.where(int(rows[0]))}; steps of {grid.frequency} follow "
                "one clock: set task.data.time_zone (Europe/Berlin)"
            )
    steps = _steps(rowwise, grid, name, rows, times)
    zone = stamps.zone(rows)
    return Line(grid.start(times[0]), steps, Marks(grid, times[0], None, zone, wall), regular(times, grid))


def _with_places(lines: Mapping[str, Line], times: Mapping[str, Times], grid: Grid) -> dict[str, Line]:
    """The place in months, quarters or years that all series have; series by series where they differ."""
    if grid.step is not None or grid.unit == "B":
        return dict(lines)
    shared = common_place(list(times.values()), grid)
    return {
        name: replace(line, marks=replace(line.marks, place=shared or place(times[name], grid)))
        for name, line in lines.items()
    }


def _steps(rowwise: Rowwise, grid: Grid, name: str, rows: Rows, times: Times) -> Rows:
    steps, exact = grid.steps(times)
    if not exact.all():
        at = int(np.argmin(exact))
        raise ConfigError(
            f"{rowwise.named(rows[at], name)}: time {rowwise.text(rows[at])} is no step of {grid.frequency} from "
            f"{rowwise.text(rows[0])}; correct it, or set task.data.frequency"
        )
    twice = np.flatnonzero(np.diff(steps) == 0)
    if twice.size:
        at = int(twice[0])
        raise ConfigError(
            f"{rowwise.named(rows[at + 1], name)}: time {rowwise.text(rows[at + 1])} is in the same step of "
            f"{grid.frequency} as {rowwise.text(rows[at])} of row {rowwise.where(int(rows[at])).rpartition('row ')[2]}; "
            "keep one of the two"
        )
    if steps[-1] >= _SPARSEST * len(steps):
        raise ConfigError(
            f"{rowwise.named(rows[-1], name)}: {len(steps)} rows over {steps[-1] + 1} steps of {grid.frequency}, from "
            f"{rowwise.text(rows[0])} to {rowwise.text(rows[-1])}; correct the times, or set task.data.frequency"
        )
    return steps
