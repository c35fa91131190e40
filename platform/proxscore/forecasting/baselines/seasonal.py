"""The last season again, and the climatology: the mean and the spread of the same hour, or weekday, in seasons before."""

from __future__ import annotations

import warnings

import numpy as np

from proxscore.forecasting.baselines.baseline import Baseline, taken
from proxscore.forecasting.baselines.history import SEASONS, Forecast, Origins


class SeasonalNaive(Baseline):
    """y a season before, with a standard deviation that grows by every season ahead: s sqrt(k + 1), k = (h - 1) // m.

    s is the root mean square of y_t - y_(t-m) in training; a series with less than two seasons has season 1. Hyndman and
    Athanasopoulos, Forecasting: principles and practice, 5.5.
    """

    title = "seasonal naive"
    every_season = True

    def fit(self) -> None:
        self.parameters = []
        for number in range(len(self.history)):
            past = self.history.training(number, self.season)
            season = self.season if len(past) >= 2 * self.season else 1
            errors = past[season:] - past[:-season]
            self.parameters.append((season, float(np.sqrt(np.mean(errors**2))) if len(errors) else np.nan))

    def forecast(self, number: int, origins: Origins) -> Forecast:
        season, scale = self.parameters[number]
        steps = np.arange(self.history.horizon)
        mean = taken(self.history.filled(number, self.season), origins[:, None] - season + steps % season)
        return mean, scale * np.sqrt(steps // season + 1) + 0.0 * mean


class Climatology(Baseline):
    """Mean and standard deviation of the observed steps at the same place of the last eight seasons before the origin.

    The variance is that of n of them about their mean, times 1 + 1/n for the error of the mean; of fewer than two
    there is none.
    """

    title = "climatology"
    every_season = True

    def fit(self) -> None:
        """It has no parameters."""

    def forecast(self, number: int, origins: Origins) -> Forecast:
        steps = np.arange(self.history.horizon) % self.season
        places = origins[:, None, None] - self.season + steps[:, None] - self.season * np.arange(SEASONS)
        found = taken(self.history.targets[number].astype(np.float64), places)  # W x H x seasons
        count = (~np.isnan(found)).sum(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of places without observations, which are NaN
            mean, spread = np.nanmean(found, 2), np.nanstd(found, 2, ddof=1)
        return mean, np.where(count >= 2, spread * np.sqrt(1 + 1 / np.maximum(count, 1)), np.nan)
