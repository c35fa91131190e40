"""What baselines may know: series up to the end of their training parts, and up to the start of each window.

A missing step becomes what it was a season before, and nothing after a window's start is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxscore.forecasting.frequencies import Grid

Values = NDArray[np.float64]
Origins = NDArray[np.int64]
Forecast = tuple[Values, Values]  # means and standard deviations, (H,) of a window or (W, H) of several

SEASONS, LEAST_STEPS = 8, 500  # of the past that is looked at: parameters are those of that stretch


def seasons(frequency: str, season: int) -> list[int]:
    """Steps of the seasons that a frequency suggests, after that of the data set: hour, day, week and year.

    Of half-hours 48 and 336. Below a day a year is left out, and an hour of fewer than four steps.
    """
    grid = Grid.of(frequency)
    if grid.step is None:
        lengths = {"B": (5, 261), "M": (12,), "Q": (4,), "Y": ()}[grid.unit[0]]
        suggested = [length // grid.units for length in lengths if length % grid.units == 0]
    else:
        day = pd.Timedelta("1D").value
        suggested = [length // grid.step for length in (day, 7 * day) if length % grid.step == 0]
        hour, rest = divmod(day // 24, grid.step)
        suggested += [hour] if hour >= 4 and not rest else []
        suggested += [round(365.25 * day / grid.step)] if grid.step >= day else []
    return list(dict.fromkeys([season, *(length for length in suggested if length > 1)]))


class History:
    """The series that baselines forecast, and how far each part of them may be looked at.

    Args:
        series: whole targets (T,), NaN where missing.
        ends: of the training parts, which parameters come from.
        horizon: H, steps of a forecast.
        lengths: of the seasons, of which the first is the data set's.
        unit: what the methods count targets in: their optimizers have tolerances of their own.
    """

    def __init__(
        self,
        series: Sequence[NDArray[np.float32]],
        ends: Sequence[int],
        horizon: int,
        lengths: Sequence[int],
        unit: float = 1.0,
    ) -> None:
        self.targets = [target / np.float32(unit) for target in series]
        self.ends, self.horizon, self.lengths, self.unit = list(ends), horizon, list(lengths), unit
        self._filled: dict[int, list[Values]] = {}

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def firsts(self) -> list[int]:
        """First observed step of each series; its length where there is none."""
        return [int(np.argmin(np.isnan(t))) if not np.isnan(t).all() else len(t) for t in self.targets]

    def filled(self, number: int, season: int) -> Values:
        """(T,) values of a series without missing ones; those from ``firsts`` on depend on earlier steps alone."""
        if season not in self._filled:
            self._filled[season] = [filled(target, season) for target in self.targets]
        return self._filled[season][number]

    def before(self, number: int, origin: int, season: int) -> Values:
        """(origin,) values of a series up to a step, which depend on nothing after it."""
        return self.filled(number, season)[:origin] if origin > self.firsts[number] else np.zeros(origin)

    def training(self, number: int, season: int) -> Values:
        """The end of a series' training part, so much of it as parameters are found from: eight seasons, or 500 steps."""
        part = self.before(number, self.ends[number], season)
        return part[max(0, len(part) - max(SEASONS * season, LEAST_STEPS)) :]

    def spread(self, number: int) -> float:
        """Standard deviation of the end of a series' training part, or 1 where that is larger."""
        part = self.training(number, 1)
        return max(float(np.std(part)), 1.0) if len(part) else 1.0


def naive(past: Values, horizon: int, season: int) -> Forecast:
    """The last season (or value, where there is less) again, for series that are too short for any method."""
    season = season if len(past) >= season else 1
    if not len(past):
        return np.zeros(horizon), np.ones(horizon)
    steps = np.arange(horizon)
    errors = past[season:] - past[:-season]
    spread = float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0
    return past[len(past) - season + steps % season], spread * np.sqrt(steps // season + 1)


def filled(target: NDArray[np.float32], season: int) -> Values:
    """Each missing step as a season before; in the first season, as the last observed one, or as the first of all.

    What follows a step is looked at for the steps before the first observation only; without one, all are 0.
    """
    values = target.astype(np.float64)
    missing = np.flatnonzero(np.isnan(values))
    if len(missing) == len(values):
        return np.zeros_like(values)
    if missing.size:
        first = int(np.argmin(np.isnan(values)))
        values[:first] = values[first]
        for step in missing[missing > first]:
            values[step] = values[step - season] if step - season >= first else values[step - 1]
    return values
