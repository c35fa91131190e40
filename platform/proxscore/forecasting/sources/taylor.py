"""Electricity demand of England and Wales in MW, half-hourly, 4,032 steps from Monday, 5 June 2000.

Taylor (2003), "Short-term electricity demand forecasting using double seasonal exponential smoothing", JORS 54. With the
package pmdarima.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from proxscore.forecasting.frequencies import Grid
from proxscore.forecasting.series import Series, SeriesData
from proxscore.forecasting.sources.base import WindowedSeries
from proxscore.forecasting.sources.installed import module


class TaylorConfig(WindowedSeries):
    """Half-hourly electricity demand of England and Wales, 12 weeks: comes with pmdarima."""

    kind: Literal["taylor"] = "taylor"

    def load(self, frequency: str | None = None) -> SeriesData:
        """One series of 4,032 half-hours; season 48, a day.

        Raises:
            ConfigError: pmdarima is not installed.
        """
        values = module("pmdarima.datasets", "taylor", "pmdarima").load_taylor()
        grid = Grid.of("30min")
        series = Series.plain("taylor", grid.start(np.datetime64("2000-06-05", "ns")), values)
        return SeriesData((series,), grid.frequency, self.season or 48, details={"source": "taylor"})
