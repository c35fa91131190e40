"""Probabilistic forecasting: the settings of the task, and what they build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from proxscore.config import SERIES_SOURCES, Section, TaskSection
from proxscore.config.extras import need
from proxscore.forecasting.sources.base import MAX_CONTEXT, SeriesSource

if TYPE_CHECKING:
    from proxscore.forecasting.series_task import SeriesTask

MAX_HORIZON = 100_000  # steps

#: The keys of ``forecasting.baselines.BASELINES``.
BaselineName = Literal[
    "naive",
    "drift",
    "ewma",
    "garch",
    "seasonal_naive",
    "climatology",
    "linear_ar",
    "standard_theta",
    "theta",
    "ets",
    "arima",
]

#: The keys of ``forecasting.likelihoods.names.LIKELIHOODS``, and auto.
LikelihoodName = Literal[
    "auto",
    "student_t",
    "normal",
    "truncated_student_t",
    "truncated_normal",
    "lognormal",
    "negative_binomial",
    "zero_inflated_negative_binomial",
    "zero_inflated_lognormal",
    "normal_mixture",
    "quantiles",
]

_SOURCES = SERIES_SOURCES.default("taylor")


class ForecastModelConfig(Section):
    """A forecasting network by its name in ``forecasting.networks``, and what it starts from."""

    name: str = "MLP"  # of a network in forecasting.networks
    kwargs: dict[str, Any] = Field({})  # go to GluonTS's estimator, or to Koopa or the MLP, as they are
    # What the network corrects: a regression on the past of all series (linear), the theta method or the climatology of each one,
    # the best of them by validation CRPS as far as they are quick (auto), or nothing (none), as DeepAR always does.
    anchor: Literal["auto", "none", "linear", "theta", "climatology"] = "auto"
    # Least scale of a window, in mean steps |y_t - y_(t-1)| of the calmest series; for windows that are all zero.
    scale_floor: float = Field(0.1, ge=0, allow_inf_nan=False)
    # Of each step, given the network's outputs; auto: by the kind of the training targets. See forecasting.likelihoods.
    likelihood: LikelihoodName = "auto"


class ConformalConfig(Section):
    """Intervals that hold their level on data like the validation windows; see forecasting.intervals."""

    # adaptive: thresholds also follow the targets that come to be known, for series that drift; none: no calibrated intervals.
    kind: Literal["split", "adaptive", "none"] = "split"
    gamma: float = Field(0.05, gt=0, le=10)  # of adaptive: how far a miss moves an end, in widths of the interval
    # Thresholds of their own for each value of this static category, or for each of the "series", if it has windows enough.
    groups: str | None = None


class ForecastingConfig(TaskSection):
    """Probabilistic forecasts of series."""

    kind: Literal["forecasting"] = "forecasting"
    early_stopping: ClassVar[bool] = True
    model: ForecastModelConfig = ForecastModelConfig()
    data: Annotated[SeriesSource, _SOURCES] = Field(default_factory=_SOURCES.make)
    horizon: int = Field(48, ge=2, le=MAX_HORIZON)  # steps that a window forecasts
    # Steps that the network looks back to; null: the longest season that the series repeat often enough, and two horizons.
    context: int | None = Field(None, ge=1, le=MAX_CONTEXT)
    train_stride: int = Field(1, ge=1, le=MAX_CONTEXT)  # steps between the starts of training windows
    # What a network is shown beside; null: all but arima, theta and ets as far as they are quick; arima takes minutes per series
    # where the season is long.
    baselines: list[BaselineName] | None = None
    conformal: ConformalConfig = ConformalConfig()

    def example_input(self, description: Mapping[str, Any], where: str) -> tuple[str, Any]:
        need("forecast", "task.kind=forecasting")
        from proxscore.forecasting.predictor import SeriesPredictor, columns_of, example

        return SeriesPredictor.takes, example(self, columns_of(self, description["data"]), description["data"])

    def predictor(self, posterior: Any, config: Any, folder: Path, device: Any) -> Any:
        need("forecast", "task.kind=forecasting")
        from proxscore.forecasting.predictor import SeriesPredictor  # GluonTS takes seconds

        return SeriesPredictor(posterior, config, folder, device)

    def build(self, *, verify: bool = True, trained: Mapping[str, Any] | None = None) -> SeriesTask:
        need("forecast", "task.kind=forecasting")
        from proxscore.forecasting.series_task import SeriesTask  # GluonTS takes seconds

        return SeriesTask(self, verify=verify, trained=trained)

    def check_description(self, description: Mapping[str, Any], where: str) -> None:
        need("forecast", "task.kind=forecasting")
        from proxscore.forecasting.trained import check_trained

        check_trained(description.get("data"), where)
