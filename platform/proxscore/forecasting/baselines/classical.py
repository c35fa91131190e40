"""The customary methods of statsforecast, each fitted to one series at a time.

* ``ETS``: exponential smoothing, of all its forms the one with the least AICc (``AutoETS``).
* ``standard theta``: that of the M3 competition (Assimakopoulos and Nikolopoulos, 2000; ``Theta``).
* ``theta``: the best of four theta methods, by squared error of training (``AutoTheta``).
* ``ARIMA``: seasonal ARIMA with the least AICc (``AutoARIMA``); minutes where the season is long.

They are fitted once per series, to the end of its training part. Up to each window they follow the data from where the fit
began, with its parameters: the states that it began with belong to that step of the season, and to no other.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from proxscore.forecasting.baselines.baseline import Baseline
from proxscore.forecasting.baselines.history import LEAST_STEPS, SEASONS, Forecast, History, Origins, Values

_LEVEL = 80  # percent, of the interval that a standard deviation is computed from
_WIDTH = 1.2815515655446004  # of its half, in standard deviations


class Fitted:
    """One of statsforecast's models, fitted to one series.

    Args:
        model: of statsforecast.
        training: (T,) the series' training part, without missing values.
        season: of the model, whose last eight at least are looked at.
    """

    def __init__(self, model: Any, training: Values, season: int) -> None:
        self.first = max(0, len(training) - _looked_at(season))
        self.model = model
        with _quiet():
            self.model.fit(training[self.first :])

    def __call__(self, past: Values, horizon: int) -> Forecast:
        """Of what comes after (T,) values without missing ones, from the beginning of the series on.

        Raises:
            ValueError: the method has no forecast of finite numbers.
        """
        with _quiet():
            found = self.model.forward(past[self.first :], h=horizon, level=[_LEVEL])
        mean = np.asarray(found["mean"], np.float64)
        spread = (np.asarray(found[f"hi-{_LEVEL}"]) - np.asarray(found[f"lo-{_LEVEL}"])) / (2 * _WIDTH)
        if not (np.isfinite(mean).all() and np.isfinite(spread).all()):
            raise ValueError("a forecast that is not finite")
        return mean, spread.astype(np.float64)


class Classical(Baseline):
    """A method of statsforecast, which knows series of two seasons and more by the season, and shorter ones by none.

    Attributes:
        per_step, per_season: about how many seconds a fit takes for each step that is looked at, and by how much of that more
            for each step of the season.
        per_window: seconds of a forecast.
    """

    per_step: ClassVar[float]
    per_season: ClassVar[float]
    per_window: ClassVar[float] = 1.6e-3

    @staticmethod
    @abstractmethod
    def model(season: int) -> Any:
        """The model of statsforecast."""

    def fit(self) -> None:
        self.fitted: list[Fitted | None] = []
        for number in range(len(self.history)):
            training = self.history.before(number, self.history.ends[number], self.season)
            season = self.season if len(training) >= 2 * self.season else 1
            try:
                self.fitted.append(Fitted(self.model(season), training, season))
            except ImportError:
                raise
            except Exception:  # each method refuses short or degenerate series with errors of its own
                self.fitted.append(None)

    def forecast(self, number: int, origins: Origins) -> Forecast:
        found, fitted = np.full((2, len(origins), self.history.horizon), np.nan), self.fitted[number]
        for row, origin in enumerate(origins.tolist()):
            if fitted is None:
                break
            try:
                past = self.history.before(number, origin, self.season)
                found[:, row] = fitted(past, self.history.horizon)
            except Exception:  # the same errors: the seasonal naive forecast stands in, and is told
                continue
        return found[0], found[1]

    @classmethod
    def seconds(cls, history: History, season: int, windows: int) -> float:
        """See :class:`Baseline`. Rough: of what was timed on one core, theta and ETS took from a seventh of it to all of it.

        ARIMA's was not checked: it never runs unasked.
        """
        steps = sum(min(end, _looked_at(season)) for end in history.ends)
        return cls.per_step * steps * (1 + cls.per_season * season) + cls.per_window * windows


class ETS(Classical):
    title = "ETS"
    per_step, per_season = 5e-4, 0.02

    @staticmethod
    def model(season: int) -> Any:
        from statsforecast import models  # here: it takes seconds, and only some jobs need it

        return models.AutoETS(season)


class Theta(Classical):
    title = "theta"
    every_season = True
    per_step, per_season = 1e-4, 0.005

    @staticmethod
    def model(season: int) -> Any:
        from statsforecast import models

        return models.AutoTheta(season)


class StandardTheta(Classical):
    title = "standard theta"
    every_season = True
    per_step, per_season = 2e-5, 0.005

    @staticmethod
    def model(season: int) -> Any:
        from statsforecast import models

        return models.Theta(season)


class ARIMA(Classical):
    title = "ARIMA"
    per_step, per_season = 1e-3, 0.5

    @staticmethod
    def model(season: int) -> Any:
        from statsforecast import models

        # Approximate likelihoods in its search: four times as fast, and no worse forecasts.
        return models.AutoARIMA(season_length=season, approximation=True)


def _looked_at(season: int) -> int:
    return max(SEASONS * season, LEAST_STEPS)


def _quiet() -> Any:
    return warnings.catch_warnings(action="ignore")  # of optima that are approximate: they serve
