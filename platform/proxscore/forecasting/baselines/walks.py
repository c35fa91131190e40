"""The last value again, and the last value with a drift: random walks whose errors have one size.

Hyndman and Athanasopoulos, Forecasting: principles and practice, 5.2 and 5.5.
"""

from __future__ import annotations

import numpy as np

from proxscore.forecasting.baselines.baseline import Baseline
from proxscore.forecasting.baselines.history import Forecast, Origins


class Naive(Baseline):
    """y_(o-1) at every step ahead; standard deviation s sqrt(h), s the root mean square of differences in training."""

    title = "naive"

    def fit(self) -> None:
        steps = [np.diff(self.history.training(number, self.season)) for number in range(len(self.history))]
        self.scales = [float(np.sqrt(np.mean(step**2))) if len(step) else np.nan for step in steps]

    def forecast(self, number: int, origins: Origins) -> Forecast:
        last = self.history.filled(number, self.season)[origins - 1][:, None]
        ahead = np.arange(1, self.history.horizon + 1)
        return last + 0.0 * ahead, self.scales[number] * np.sqrt(ahead) + 0.0 * last


class Drift(Baseline):
    """y_(o-1) + b h, b the mean difference of T steps of training; standard deviation s sqrt(h (1 + h / (T - 1))).

    s is the root mean square of the differences about b.
    """

    title = "drift"

    def fit(self) -> None:
        self.parameters = []
        for number in range(len(self.history)):
            steps = np.diff(self.history.training(number, self.season))
            few = len(steps) < 2
            self.parameters.append((np.nan, np.nan, 0) if few else (steps.mean(), steps.std(), len(steps)))

    def forecast(self, number: int, origins: Origins) -> Forecast:
        drift, scale, count = self.parameters[number]
        last = self.history.filled(number, self.season)[origins - 1][:, None]
        ahead = np.arange(1, self.history.horizon + 1)
        return last + drift * ahead, scale * np.sqrt(ahead * (1 + ahead / max(count, 1))) + 0.0 * last
