"""The baselines by name.

To add one: a file here with a subclass of :class:`proxscore.forecasting.baselines.baseline.Baseline`, a line below, and its name
in ``task.baselines``.
"""

from __future__ import annotations

from proxscore.forecasting.baselines.baseline import Baseline
from proxscore.forecasting.baselines.classical import ARIMA, ETS, StandardTheta, Theta
from proxscore.forecasting.baselines.regression import LinearAR
from proxscore.forecasting.baselines.seasonal import Climatology, SeasonalNaive
from proxscore.forecasting.baselines.volatility import EWMA, GARCH
from proxscore.forecasting.baselines.walks import Drift, Naive

BASELINES: dict[str, type[Baseline]] = {
    "naive": Naive,
    "drift": Drift,
    "ewma": EWMA,
    "garch": GARCH,
    "seasonal_naive": SeasonalNaive,
    "climatology": Climatology,
    "linear_ar": LinearAR,
    "standard_theta": StandardTheta,
    "theta": Theta,
    "ets": ETS,
    "arima": ARIMA,
}

#: What runs where ``task.baselines`` names none, the costly ones as far as ``SECONDS`` go, in this order.
QUICK = tuple(name for name in BASELINES if name != "arima")
SECONDS = 30.0  # about so many, of all of them together, on one core
