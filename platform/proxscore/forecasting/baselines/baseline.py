"""What a baseline is: a method with one season, whose parameters are those of the training parts, for all series."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from proxscore.forecasting.baselines.history import Forecast, History, Origins, Values, naive

LEAST = 1e-6  # of a standard deviation, in units of the series' own: a constant series has a density, too


class Baseline(ABC):
    """One method with one season, fitted to the training parts of all series.

    A subclass finds its parameters in :meth:`fit`, and may look at ``history.before(number, origin)``, or at what comes
    before the origin in ``history.filled``, and at nothing else, when it forecasts.

    Args:
        history: the series.
        season: steps.

    Attributes:
        title: in tables.
        every_season: every season that the frequency suggests is tried.
        failed: numbers of the series that it has no forecast for, at least of some window: the seasonal naive forecast stands in.
    """

    title: ClassVar[str]
    every_season: ClassVar[bool] = False

    def __init__(self, history: History, season: int) -> None:
        self.history, self.season = history, season
        self.failed: set[int] = set()
        self.fit()

    @abstractmethod
    def fit(self) -> None:
        """Find the parameters, from ``history.training`` of each series."""

    @abstractmethod
    def forecast(self, number: int, origins: Origins) -> Forecast:
        """(W, H) means and standard deviations of a series' windows from each origin on; NaN where it has no forecast.

        Every origin is after the first observed step.
        """

    @classmethod
    def seconds(cls, history: History, season: int, windows: int) -> float:
        """About what it takes for so many windows, where that is no fraction of a second."""
        return 0.0

    def __call__(self, number: int, origins: Origins) -> Forecast:
        """Forecasts of finite numbers, with a standard deviation above zero, in any case."""
        shape = len(origins), self.history.horizon
        mean, spread = np.full(shape, np.nan), np.full(shape, np.nan)
        known = origins > self.history.firsts[number]
        if known.any():
            mean[known], spread[known] = self.forecast(number, origins[known])
        bad = ~(np.isfinite(mean) & np.isfinite(spread)).all(1)
        if bad.any():
            self.failed.add(number)
        for row in np.flatnonzero(bad):
            past = self.history.before(number, int(origins[row]), self.season)
            mean[row], spread[row] = naive(past, self.history.horizon, self.season)
        return mean, np.maximum(spread, LEAST * self.history.spread(number))


def taken(values: Values, indices: Origins) -> Values:
    """Values at indices of any shape; NaN at those below zero."""
    return np.where(indices >= 0, values[np.maximum(indices, 0)], np.nan)
