"""What any network must beat: the seasonal naive forecast, and exponential smoothing, both with Gaussian intervals.

Seasonal naive, with m the season and k = floor((h - 1) / m) the seasons that step h lies ahead:

    mean_h = y_(T + h - m (k + 1)),    sd_h = s sqrt(k + 1)

s the root mean square of y_t - y_(t-m) over the past (Hyndman and Athanasopoulos, Forecasting: principles and practice, 5.5).
Exponential smoothing: statsmodels' ``ETSModel`` with additive errors, damped additive trend and additive season, fitted once per
series to its training part; at later origins its states follow the data, its parameters stay. Missing steps are
interpolated for both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from statsmodels.tools.sm_exceptions import ConvergenceWarning
from statsmodels.tsa.exponential_smoothing.ets import ETSModel

from proxscore.forecasting.distributions import Normal
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.windows import Windows

Values = NDArray[np.float64]
Forecast = tuple[Values, Values]  # means and standard deviations (H,)
SEASONS = 8  # of the past that exponential smoothing looks at: its states forget what lies before
LEAST = 1e-6  # of a standard deviation, in units of the series' own: a constant series has a density, too


def seasonal_naive(past: Values, horizon: int, season: int) -> Forecast:
    """Of one origin.

    Args:
        past: (T,) without missing values; with fewer steps than the season, the last value is repeated.
    """
    season = season if len(past) > season else 1
    steps = np.arange(horizon)
    ahead = steps // season + 1
    errors = past[season:] - past[:-season]
    spread = np.sqrt(np.mean(errors**2)) if len(errors) else 0.0
    return past[len(past) - season + steps % season], spread * np.sqrt(ahead)


class ExponentialSmoothing:
    """Of one series.

    Args:
        training: (T,) its training part, without missing values.
        season: steps; series shorter than two seasons have none.
    """

    def __init__(self, training: Values, season: int) -> None:
        self.length = SEASONS * max(season, 24)
        self.season = season if season > 1 and len(training) >= 2 * season else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an approximate optimum serves
            self.parameters = self._model(training[-self.length :]).fit(disp=False, maxiter=100).params

    def _model(self, values: Values) -> Any:
        seasonal = None if self.season is None else "add"
        return ETSModel(
            pd.Series(values),
            error="add",
            trend="add",
            damped_trend=True,
            seasonal=seasonal,
            seasonal_periods=self.season,
        )

    def __call__(self, past: Values, horizon: int) -> Forecast:
        """Of one origin."""
        result = self._model(past[-self.length :]).smooth(self.parameters)
        found = result.get_prediction(start=result.nobs, end=result.nobs + horizon - 1)
        return np.asarray(found.predicted_mean), np.sqrt(np.asarray(found.forecast_variance))


def floors(
    series: Sequence[NDArray[np.float32]], ends: Sequence[int], season: int, windows: Windows
) -> dict[str, ForecastPredictive]:
    """``seasonal naive`` and ``ETS`` for the windows.

    Args:
        series: whole targets, NaN where missing.
        ends: of the training parts.
    """
    filled = [_filled(target) for target in series]
    smoothing = [ExponentialSmoothing(values[:end], season) for values, end in zip(filled, ends, strict=True)]
    methods: dict[str, Callable[[int, int], Forecast]] = {
        "seasonal naive": lambda number, origin: seasonal_naive(filled[number][:origin], windows.panel.horizon, season),
        "ETS": lambda number, origin: smoothing[number](filled[number][:origin], windows.panel.horizon),
    }
    _, targets = windows.__getitems__(range(len(windows)))
    found = {}
    for name, method in methods.items():
        rows = []
        for number, origin in windows.index.tolist():
            mean, spread = method(number, origin)
            least = LEAST * max(float(np.std(filled[number][:origin])), 1.0)
            rows.append(np.stack([mean, np.maximum(spread, least)], 1))
        outputs = torch.from_numpy(np.stack(rows)).float()[None]
        found[name] = ForecastPredictive(Normal(), outputs, None, targets)
    return found


def _filled(target: NDArray[np.float32]) -> Values:
    """Linear between observed steps, constant before the first and after the last."""
    values = target.astype(np.float64)
    missing = np.isnan(values)
    if missing.any():
        steps = np.arange(len(values))
        values[missing] = np.interp(steps[missing], steps[~missing], values[~missing])
    return values
