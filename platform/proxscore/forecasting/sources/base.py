"""The settings that sources of series share, and how each is split into windows."""

from __future__ import annotations

from abc import abstractmethod

from pydantic import Field

from proxscore.config import DataSection
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.splits import Split, split_series, usual_windows

MAX_CONTEXT = 1_000_000  # steps
MAX_WINDOWS = 1_000_000


class SeriesSource(DataSection):
    """A source of series."""

    @abstractmethod
    def load(self, frequency: str | None = None) -> SeriesData:
        """The series.

        Args:
            frequency: of the network that they are for, taken where the timestamps are too few to tell theirs.

        Raises:
            ConfigError: a path, file, row or package at fault; one line names it.
        """

    @abstractmethod
    def split(self, data: SeriesData, horizon: int, *, context: int = 1) -> list[Split]:
        """Training, validation and test windows of each series; see :func:`proxscore.forecasting.splits.split_series`."""


class WindowedSeries(SeriesSource):
    """What sources of series without a split of their own have in common.

    Windows are set back from the end of each series by ``stride``.
    """

    # Steps; null: of the frequency (24 of hours), or the data set's own.
    season: int | None = Field(None, ge=1, le=MAX_CONTEXT)
    # The last forecasts of each series; null: 99, fewer where series are short or many (see forecasting.splits).
    test_windows: int | None = Field(None, ge=1, le=MAX_WINDOWS)
    validation_windows: int | None = Field(None, ge=1, le=MAX_WINDOWS)  # those before; null: likewise
    # Steps from one forecast's start to the next; null: the horizon.
    stride: int | None = Field(None, ge=1, le=MAX_CONTEXT)

    def split(self, data: SeriesData, horizon: int, *, context: int = 1) -> list[Split]:
        usual = usual_windows([len(each) for each in data.series], horizon, self.stride or horizon, context)
        return split_series(
            data,
            horizon,
            context=context,
            test_windows=self.test_windows or usual,
            validation_windows=self.validation_windows or usual,
            stride=self.stride,
        )
