"""What any network must beat: the customary methods, by statsforecast, each with the season that serves it best.

* ``seasonal_naive``: the last season again, with intervals that widen with every season ahead (Hyndman and Athanasopoulos,
  Forecasting: principles and practice, 5.5).
* ``ets``: exponential smoothing, of all its forms the one with the least AICc (``AutoETS``).
* ``theta``: the best of four theta methods, by squared error (``AutoTheta``).
* ``arima``: seasonal ARIMA with the least AICc (``AutoARIMA``); minutes where the season is long.

The last three are fitted once per series, to the end of its training part. Up to each window they follow the data from where
the fit began, with its parameters: the states that it began with belong to that step of the season, and to no other.
Seasonal naive and theta are tried with every season that the frequency suggests, and the one with the best CRPS of the
validation windows is taken, of all series together.

A missing step becomes what it was a season before, and nothing after a window's start is looked at.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from proxscore.calibration.crps import crps_gaussian
from proxscore.forecasting.distributions import Normal
from proxscore.forecasting.frequencies import Grid
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.windows import Windows

T = TypeVar("T")
Values = NDArray[np.float64]
Forecast = tuple[Values, Values]  # means and standard deviations (H,)

SEASONS, LEAST_STEPS = 8, 500  # of the past that is looked at: parameters are those of that stretch
LEAST = 1e-6  # of a standard deviation, in units of the series' own: a constant series has a density, too
_LEVEL = 80  # percent, of the interval that a standard deviation is computed from
_WIDTH = 1.2815515655446004  # of its half, in standard deviations

#: Name in tables, and whether every season is tried, by the setting.
BASELINES = {
    "seasonal_naive": ("seasonal naive", True),
    "ets": ("ETS", False),
    "theta": ("theta", True),
    "arima": ("ARIMA", False),
}


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


class Baseline:
    """One method with one season, for one series.

    Args:
        kind: a key of ``BASELINES``.
        training: (T,) the series' training part, without missing values.
        season: steps; none where the training part is shorter than two of them.
    """

    def __init__(self, kind: str, training: Values, season: int) -> None:
        self.season = season if len(training) >= 2 * season else 1
        self.first = max(0, len(training) - max(SEASONS * season, LEAST_STEPS))
        self.model = _model(kind, self.season)
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


def _model(kind: str, season: int) -> Any:
    from statsforecast import models  # here: it compiles for seconds, and only comparisons need it

    if kind == "arima":  # approximate likelihoods in its search: four times as fast, and no worse forecasts
        return models.AutoARIMA(season_length=season, approximation=True)
    return {"seasonal_naive": models.SeasonalNaive, "ets": models.AutoETS, "theta": models.AutoTheta}[kind](season)


def _quiet() -> Any:
    return warnings.catch_warnings(action="ignore")  # of optima that are approximate: they serve


def baselines(
    kinds: Sequence[str],
    series: Sequence[NDArray[np.float32]],
    ends: Sequence[int],
    lengths: Sequence[int],
    validation: Windows,
    test: Windows,
    unit: float = 1.0,
) -> dict[str, ForecastPredictive]:
    """Predictives for the test windows by name, which tells the season where several were tried.

    Args:
        kinds: keys of ``BASELINES``.
        series: whole targets, NaN where missing.
        ends: of the training parts.
        lengths: of the seasons, of which the first is the data set's.
        validation: windows that a season is chosen by.
        test: windows to forecast.
        unit: what the methods count targets in: their optimizers have tolerances of their own.
    """
    found = {}
    series = [target / np.float32(unit) for target in series]
    for kind in kinds:
        name, every = BASELINES[kind]
        tried = [_Fitted(kind, series, ends, season, unit) for season in (lengths if every else lengths[:1])]
        best = min(tried, key=lambda fitted: _crps(fitted(validation))) if len(tried) > 1 else tried[0]
        found[name if len(tried) == 1 else f"{name}, {best.season}"] = best(test)
    return found


class _Fitted:
    """One method with one season, for all series. Where it fails on a series, the last value or season stands in."""

    def __init__(
        self, kind: str, series: Sequence[NDArray[np.float32]], ends: Sequence[int], season: int, unit: float
    ) -> None:
        self.kind, self.series, self.season, self.unit = kind, series, season, unit
        self.failed: set[int] = set()
        self.baselines = [
            self._or_none(number, partial(Baseline, kind, filled(target[:end], season), season))
            for number, (target, end) in enumerate(zip(series, ends, strict=True))
        ]

    def __call__(self, windows: Windows) -> ForecastPredictive:
        horizon, rows = windows.panel.horizon, []
        for number, origin in windows.index.tolist():
            past, fitted = filled(self.series[number][:origin], self.season), self.baselines[number]
            found = None if fitted is None else self._or_none(number, partial(fitted, past, horizon))
            mean, spread = found or naive(past, horizon, self.season)
            rows.append(np.stack([mean, np.maximum(spread, LEAST * max(float(np.std(past)), 1.0))], 1))
        if self.failed:
            logging.getLogger(__name__).warning(
                "%s with season %d fails on %d of %d series: the seasonal naive forecast stands in",
                *(self.kind, self.season, len(self.failed), len(self.series)),
            )
        outputs = torch.from_numpy(self.unit * np.stack(rows)).float()[None]
        return ForecastPredictive(Normal(), outputs, None, windows.__getitems__(range(len(windows)))[1])

    def _or_none(self, number: int, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Exception:  # each method refuses short or degenerate series with errors of its own
            self.failed.add(number)
            return None


def naive(past: Values, horizon: int, season: int) -> Forecast:
    """The last season (or value, where there is less) again, for series that are too short for any method."""
    season = season if len(past) >= season else 1
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


def _crps(predictive: ForecastPredictive) -> float:
    values, observed = predictive.targets[:, 0].double(), predictive.targets[:, 1] > 0
    mean, scale = predictive.outputs[0].double().unbind(-1)
    return float(crps_gaussian(mean, scale, values)[observed].sum())
