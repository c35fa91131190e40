"""Where in its step a timestamp stands, so that the stamps of further steps stand there too.

Seconds to weeks go on from the first stamp, be it a Monday or half past the hour. Business days go on at the same time of
the day. Stamps of months, quarters and years keep their place: the first or the last day, the first or the last business
day, the same day of the month (the last one where the month is shorter), or the same weekday of the month (third Friday, last
Friday), of the same month of the unit, at the same time of the day.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxscore.forecasting.clocks import UTC, Times, localise
from proxscore.forecasting.frequencies import Grid

Days = NDArray[Any]  # of datetime64
_MONTHS = {"M": 1, "Q": 3, "Y": 12}
_DAY = np.timedelta64(1, "D")


def _weekmask(number: int) -> list[int]:
    return [int(day == number % 7) for day in range(7)]


#: Days of months by rule, from their first and last days and a number.
_RULES: dict[str, Callable[[Days, Days, int], Days]] = {
    "first day": lambda first, last, _: first,
    "last day": lambda first, last, _: last,
    "first business day": lambda first, last, _: np.busday_offset(first, 0, roll="forward"),
    "last business day": lambda first, last, _: np.busday_offset(last, 0, roll="backward"),
    "day": lambda first, last, number: np.minimum(first + (number - 1) * _DAY, last),
    "weekday": lambda first, last, number: np.busday_offset(
        first, number // 7, roll="forward", weekmask=_weekmask(number)
    ),
    "last weekday": lambda first, last, number: np.busday_offset(last, 0, roll="backward", weekmask=_weekmask(number)),
}


@dataclass(frozen=True)
class Place:
    """The place of stamps within their months, quarters or years.

    Attributes:
        month: of the unit, from 0.
        rule: a key of the table of rules.
        number: day of the month; or weekday (0: Monday) + 7 times how many of its kind come before it in the month.
        time: of the day.
    """

    month: int
    rule: str
    number: int
    time: np.timedelta64

    def times(self, units: Days) -> Times:
        """The stamps of units that begin with these months."""
        months = units.astype("datetime64[M]") + self.month
        first, last = months.astype("datetime64[D]"), (months + 1).astype("datetime64[D]") - _DAY
        return (_RULES[self.rule](first, last, self.number).astype("datetime64[ns]") + self.time).astype(
            "datetime64[ns]"
        )


def place(times: Times, grid: Grid) -> Place | None:
    """The place that all these stamps have in their units, the simplest where they leave a choice; None without one."""
    days = times.astype("datetime64[D]")
    units = _units(times, grid)
    months = (times.astype("datetime64[M]") - units).astype(int)
    of_day = times - days
    if (months != months[0]).any() or (of_day != of_day[0]).any():
        return None
    for rule, number in _candidates(days):
        found = Place(int(months[0]), rule, number, of_day[0])
        if (found.times(units) == times).all():
            return found
    return None


def _candidates(days: Days) -> Iterator[tuple[str, int]]:
    yield from ((rule, 0) for rule in ("first day", "last day", "first business day", "last business day"))
    numbers = (days - days.astype("datetime64[M]")).astype(int)
    weekday = int((days[0].astype(int) + 3) % 7)  # day 0 was a Thursday
    yield "day", int(numbers.max()) + 1
    yield "weekday", 7 * int(numbers[0] // 7) + weekday
    yield "last weekday", weekday


def _units(times: Times, grid: Grid) -> Days:
    """The first month of the unit that holds each time."""
    periods = pd.DatetimeIndex(times).to_period(grid.unit)
    return periods.to_timestamp(how="start").to_numpy().astype("datetime64[M]")


@dataclass(frozen=True)
class Marks:
    """The timestamps of the steps of one series, of those to come too.

    Attributes:
        grid: of the steps.
        first: timestamp of step 0 on its clock.
        place: within months, quarters and years; None: their beginning.
        zone: in which timestamps are given; None: they have none.
        wall: the clock is that of the zone; else its instants are in UTC.
    """

    grid: Grid
    first: np.datetime64
    place: Place | None = None
    zone: str | None = None
    wall: bool = True

    def at(self, steps: NDArray[np.int64]) -> Any:
        """``pandas.DatetimeIndex`` of steps, counted from the first one, in the zone."""
        times = self._on_clock(steps)
        if self.zone is None:
            return pd.DatetimeIndex(times)
        instants = localise(times, self.zone) if self.wall else times
        return pd.DatetimeIndex(instants, tz=UTC).tz_convert(self.zone)

    def _on_clock(self, steps: NDArray[np.int64]) -> Times:
        if self.grid.step is not None:
            return self.first + (steps * self.grid.step).astype("timedelta64[ns]")
        first = np.array([self.first])
        if self.grid.unit == "B":
            days = np.busday_offset(first.astype("datetime64[D]"), steps * self.grid.units, roll="backward")
            return (days + (first - first.astype("datetime64[D]"))).astype("datetime64[ns]")
        units = _units(first, self.grid) + steps * self.grid.units * _MONTHS[self.grid.unit[0]]
        found = self.place or Place(0, "first day", 0, np.timedelta64(0, "ns"))
        return found.times(units)


def regular(times: Times, grid: Grid) -> bool:
    """Whether the stamps of one series are where :class:`Marks` would put them; they must be steps of the grid."""
    if grid.step is not None:
        return True
    if grid.unit == "B":
        of_day = times - times.astype("datetime64[D]")
        return bool((of_day == of_day[0]).all())
    return place(times, grid) is not None


def common_place(series: Sequence[Times], grid: Grid) -> Place | None:
    """The place of the stamps of all series together; None where they differ, or the grid has no use for it."""
    if grid.step is not None or grid.unit == "B":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return place(np.concatenate(series), grid)
