"""Forecasts of new series by a saved posterior of a forecasting network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from proxscore.config import Config, ConfigError
from proxscore.forecasting.forecasts import Forecaster, ahead, floored, table
from proxscore.forecasting.predictive import ForecastPredictive, predicted
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.sources.table import SeriesTableConfig, of_table
from proxscore.forecasting.task import ForecastingConfig
from proxscore.forecasting.trained import trained_context
from proxscore.posterior import Posterior
from proxscore.tasks.predictions import QUANTILES, Prediction
from proxscore.tasks.predictor import Predictor

if TYPE_CHECKING:
    pass

BATCH = 256  # windows that go through the network together


@dataclass(repr=False)
class SeriesPrediction(Prediction):
    """What comes after each series: H steps.

    Attributes:
        predictive: of the steps.
        series: that were continued.
    """

    predictive: ForecastPredictive
    series: SeriesData

    def __len__(self) -> int:
        return len(self.predictive.targets)

    def __repr__(self) -> str:
        return self._told("series")

    @property
    def mean(self) -> Tensor:
        """(N, H), in units of the target."""
        return torch.cat([chunk.mean for chunk in self.predictive.chunks()])

    @property
    def aleatoric(self) -> Tensor | None:
        """(N, H), variance of the noise, averaged over draws; none where the network does not tell it."""
        return self._variance("aleatoric")

    @property
    def epistemic(self) -> Tensor | None:
        """(N, H), variance over draws of the mean; none where the network does not tell it."""
        return self._variance("epistemic")

    @property
    def total(self) -> Tensor | None:
        """(N, H), variance of noise and weights together."""
        noise, weights = self.aleatoric, self.epistemic
        return None if noise is None or weights is None else noise + weights

    def _variance(self, name: str) -> Tensor | None:
        parts = [getattr(chunk, name) for chunk in self.predictive.chunks()]
        return None if any(part is None for part in parts) else torch.cat(parts)

    def quantiles(self, probabilities: Sequence[float] = QUANTILES) -> Tensor:
        """(Q, N, H), in units of the target."""
        return torch.cat([chunk.quantiles(probabilities) for chunk in self.predictive.chunks()], 1)

    def columns(self, *, all: bool = False, quantiles: Sequence[float] = QUANTILES, **options: Any) -> dict[str, Any]:
        """A row per series and step: ``series, timestamp, step, mean, aleatoric_sd, epistemic_sd``, quantiles ``q0.05``."""
        return dict(table(self.predictive, self.series, quantiles).to_pandas().items())


class SeriesPredictor(Predictor):
    """Predicts what comes after series; see :class:`proxscore.tasks.predictor.Predictor`.

    Args:
        posterior: with its description.
        config: the configuration of its task.
        folder: that it was read from.
        device: of the network.

    Raises:
        ConfigError: the description lacks something, or the network is of another architecture.
    """

    takes = "series"

    def __init__(self, posterior: Posterior, config: Config, folder: Path, device: torch.device) -> None:
        section, self.trained = config.task, posterior.description["data"]
        assert isinstance(section, ForecastingConfig)
        self.section = section
        self.columns = columns_of(section, self.trained)
        # The network is shaped by the features of series: those of an example are as they were in training.
        series = of_table(self.columns, _arrow(example(section, self.columns, self.trained)), self.trained["frequency"])
        super().__init__(posterior, self._forecaster(series).build_model(), config, folder, device)

    def _forecaster(self, series: SeriesData) -> Forecaster:
        return Forecaster(self.section, self.trained, series)

    def predict(
        self,
        data: Any,
        draws: int | None = None,
        seed: int | None = None,
        *,
        columns: dict[str, Any] | None = None,
        batch_size: int = BATCH,
        **options: Any,
    ) -> SeriesPrediction:
        """Forecast what comes after each series of a long table, a row per series and time.

        Args:
            data: a pandas or Arrow table, or a Parquet, CSV or Arrow file (or folder of them). Its columns are called as in the
                table of training, or ``series, timestamp, target`` and the covariates by their names.
            draws: of the posterior; by default as many as it was judged by, 0: the mean weights.
            seed: of the draws, and of sample paths.
            columns: other names, by the settings of :class:`SeriesTableConfig` (``id_columns``, ``target_column``, ...).
            batch_size: windows that go through the network together.

        Raises:
            ConfigError: a column, a row or a series at fault, in one line; an option.
        """
        if options:
            raise ConfigError(f"predict takes no {next(iter(options))} of series")
        draws, seed = self.chosen(draws, seed)
        names = self.columns if not columns else self.columns.model_validate(dict(self.columns) | columns)
        task = self._forecaster(self._opened(data, names))
        windows = ahead(task)
        notes = list(self.notes)
        if flat := floored(self.module, windows):  # type: ignore[arg-type]
            notes.append(
                f"{len(flat)} of {len(windows)} contexts do not vary (the first: {flat[0]}): their forecasts have the least "
                f"scale, {task.scale_floor:.4g}"
            )
        rows = range(0, len(windows), max(batch_size, 1))
        batches = (windows.__getitems__(range(first, min(first + batch_size, len(windows)))) for first in rows)
        with self.one_by_one(draws, seed) as found:
            predictive = predicted(found, batches, seed)
        return SeriesPrediction(draws, seed, predictive, task.series, notes=tuple(notes), verdict=self.verdict)

    def _opened(self, data: Any, names: SeriesTableConfig) -> SeriesData:
        frequency = self.trained["frequency"]
        if isinstance(data, (str, Path)):
            return names.model_copy(update={"path": Path(data).expanduser()}).load(frequency)
        return of_table(names, _arrow(data), frequency)


def columns_of(section: ForecastingConfig, trained: Mapping[str, Any]) -> SeriesTableConfig:
    """Names of the columns of tables: those of the table of training, else plain ones."""
    data, features = section.data, trained["features"]
    if isinstance(data, SeriesTableConfig):
        return data
    return SeriesTableConfig(
        path=Path("table"),
        id_columns=["series"],
        known_covariates=list(features["known"]),
        past_covariates=list(features["past"]),
        static_categories=list(features["categories"]),
        static_reals=list(features["static_real"]),
        season=getattr(data, "season", None),
    )


def example(section: ForecastingConfig, columns: SeriesTableConfig, trained: Mapping[str, Any]) -> Any:
    """A table of one series that is as long as the network looks back, of ones and twos."""
    import pandas as pd

    context = section.context or trained_context(trained, section.horizon) or 1
    known = section.horizon if columns.known_covariates else 0
    stamps = pd.date_range("2020-01-01", periods=context + known, freq=trained["frequency"])
    values = np.where(np.arange(len(stamps)) < context, 1.0 + np.arange(len(stamps)) % 2, np.nan)
    frame = pd.DataFrame({columns.timestamp_column: stamps, columns.target_column: values})
    for name in columns.id_columns:
        frame.insert(0, name, "a")
    for name, kinds in trained["features"]["categories"].items():
        frame[name] = kinds[0]
    for name in (*columns.known_covariates, *columns.past_covariates, *columns.static_reals):
        frame[name] = 1.0
    return frame


def _arrow(data: Any) -> Any:
    import pandas as pd
    import pyarrow as pa

    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pd.DataFrame):
        try:
            return pa.Table.from_pandas(data, preserve_index=False)
        except pa.ArrowException as error:
            raise ConfigError(f"the table: {' '.join(str(error).split())}") from error
    raise ConfigError(f"a {type(data).__name__} holds no series: give a long table (pandas, Arrow), or its file")
