"""The unit of MASE and MSIS: the mean error of the seasonal naive forecast within the past of a series.

Hyndman and Koehler, Another look at measures of forecast accuracy (International Journal of Forecasting, 2006).
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.config import ConfigError


def seasonal_error(past: Tensor, season: int) -> Tensor:
    """() float64, mean |y_t - y_(t - season)| over the past (T,) where both are there; NaN is missing.

    NaN if there is no such pair, 0 for a series that repeats itself. Season 1 is taken where the past is no longer than a
    season, as GluonTS does.

    Raises:
        ConfigError: a season below 1, or a past that is not one series.
    """
    if season < 1:
        raise ConfigError(f"season is {season}; wanted the number of steps of a season, at least 1")
    if past.ndim != 1:
        raise ConfigError(f"past has shape {tuple(past.shape)}; wanted one series, (steps,)")
    season = season if season < len(past) else 1
    return torch.nanmean((past[season:].double() - past[:-season].double()).abs())
