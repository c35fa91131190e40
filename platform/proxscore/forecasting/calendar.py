"""The place of a step in the day, the week and the year, as sines and cosines: only of cycles that training parts repeat.

Of a cycle that they do not, its place is a clock of the whole series: what a network learns of it holds at no later time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxscore.forecasting.frequencies import Grid

Phases = Callable[[Any], NDArray[np.float64]]

#: Name -> the phase, from 0 to 1, of periods; length in days; harmonics.
_CYCLES: dict[str, tuple[Phases, float, int]] = {
    "day": (lambda index: (index.hour * 60 + index.minute) / 1440, 1.0, 2),
    "week": (lambda index: (index.dayofweek + (index.hour * 60 + index.minute) / 1440) / 7, 7.0, 2),
    "year": (lambda index: (index.dayofyear - 1) / 366, 365.25, 3),
}


@dataclass(frozen=True)
class Wave:
    """sin or cos of 2 pi k phase, of a cycle by its name: (T,) for a pandas index of T periods."""

    cycle: str
    harmonic: int
    sine: bool

    def __call__(self, index: pd.PeriodIndex) -> NDArray[np.float64]:
        angle = 2 * np.pi * self.harmonic * np.asarray(_CYCLES[self.cycle][0](index), np.float64)
        return np.sin(angle) if self.sine else np.cos(angle)


def waves(frequency: str, seasons: Sequence[int]) -> list[Wave]:
    """Of the cycles that are among the seasons, as far as a step is short enough to tell them.

    Args:
        frequency: pandas alias.
        seasons: steps of the seasons that repeat.
    """
    days = step_days(frequency)
    found = []
    for name, (_, length, harmonics) in _CYCLES.items():
        steps = length / days
        if any(abs(season - steps) <= max(0.02 * steps, 0.5) for season in seasons):
            kept = [k for k in range(1, harmonics + 1) if 2 * k <= steps]
            found += [Wave(name, k, sine) for k in kept for sine in (True, False)]
    return found


def step_days(frequency: str) -> float:
    """Mean length of a step, in days."""
    grid = Grid.of(frequency)
    if grid.step is not None:
        return float(grid.step / pd.Timedelta("1D").value)
    return grid.units * {"B": 365.25 / 261, "M": 365.25 / 12, "Q": 365.25 / 4, "Y": 365.25}[grid.unit[0]]
