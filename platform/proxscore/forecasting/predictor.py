"""Forecasts of new series by a saved posterior of a forecasting network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from proxscore.config import Config, ConfigError
from proxscore.forecasting.distributions import StepDistribution
from proxscore.forecasting.forecasts import Forecaster, ahead, floored
from proxscore.forecasting.intervals import KEY, Intervals, group_names
from proxscore.forecasting.likelihoods.excluded import places, shown, support
from proxscore.forecasting.likelihoods.names import LIKELIHOODS
from proxscore.forecasting.prediction import SeriesPrediction
from proxscore.forecasting.predictive import ForecastPredictive, predicted
from proxscore.forecasting.remarks import Remarks
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.sources.table import SeriesTableConfig, of_table
from proxscore.forecasting.task import ForecastingConfig
from proxscore.forecasting.trained import trained_context, trained_likelihood
from proxscore.forecasting.windows import Windows
from proxscore.posterior import Posterior
from proxscore.tasks.predictor import Predictor

BATCH = 256  # windows that go through the network together


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
        saved = self.validation.get(KEY)
        where = str(folder / "posterior.json")
        self.calibration = None if saved is None else Intervals.of_json(saved, section.horizon, where)

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
            data: a pandas or Arrow table, a Parquet, CSV or Arrow file (or folder of them), or series. Columns are called as in
                the table of training, or ``series, timestamp, target`` and the covariates by their names.
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
        predictive = self.predictive(windows, draws, seed, batch_size)
        remarks = self.remarks_on(task.series, windows, task.short, predictive)
        return SeriesPrediction(
            draws,
            seed,
            predictive,
            task.series,
            self.calibration,
            remarks=remarks,
            notes=(*self.notes, *self.told(remarks, draws)),
            verdict=self.verdict,
        )

    def predictive(self, windows: Windows, draws: int, seed: int, batch_size: int = BATCH) -> ForecastPredictive:
        """The predictive distribution of windows of this network."""
        rows = range(0, len(windows), max(batch_size, 1))
        batches = (windows.__getitems__(range(first, min(first + batch_size, len(windows)))) for first in rows)
        with self.one_by_one(draws, seed) as found:
            return predicted(found, batches, seed)

    def told(self, remarks: Remarks, draws: int) -> list[str]:
        """Say of which series the past tells little, and where intervals are calibrated by other series, or by other draws."""
        held, judged = self.calibration, self.validation.get("draws")
        notes = remarks.lines(
            floor=float(self.trained.get("scale_floor", 0.0)),
            context=self.section.context or trained_context(self.trained, self.section.horizon) or 1,
            groups=None if held is None else held.config.groups,
            support=support(self.likelihood),
        )
        if held is not None and held.current.levels and judged not in (None, draws):
            notes.append(f"intervals were calibrated with {judged} draws of the posterior, and {draws} predict")
        return notes

    def remarks_on(
        self, data: SeriesData, windows: Windows, short: Sequence[str], predictive: ForecastPredictive
    ) -> Remarks:
        """What is to be said of windows of some series, of which these are shorter than the context."""
        flat, held = floored(self.module, windows), self.calibration  # type: ignore[arg-type]
        pooled = bare = 0
        if held is not None and held.current.levels:
            bare = int((windows.index[:, 1] < held.past).sum())
            names = group_names(data, held.config.groups, strict=False) or [""] * len(data.series)
            own = held.current.by_group if held.config.groups is not None else {"": None}
            pooled = sum(names[n] not in own for n in windows.index[:, 0].tolist())
        unlike: list[str] = []
        if predictive.unlike is not None:
            flagged = windows.index[predictive.unlike.numpy(), 0].tolist()
            unlike = [name for name in (data.series[number].id for number in flagged) if name not in {*flat, *short}]
        wrong = [shown(data, *place) for place in places(self.likelihood, data)]
        return Remarks.of(len(windows), flat, short, unlike, pooled, bare, wrong)

    @property
    def likelihood(self) -> type[StepDistribution]:
        """The family of each step."""
        return LIKELIHOODS[trained_likelihood(self.section.model, self.trained)]

    def _opened(self, data: Any, names: SeriesTableConfig) -> SeriesData:
        if isinstance(data, SeriesData):
            return data
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
    """A table of one series that is as long as the network looks back, of ones and twos; times are text if a clock is set."""
    import pandas as pd

    context = section.context or trained_context(trained, section.horizon) or 1
    known = section.horizon if columns.known_covariates else 0
    stamps = pd.date_range("2020-01-01", periods=context + known, freq=trained["frequency"], tz=columns.time_zone)
    times = stamps if columns.time_zone is None else [stamp.isoformat() for stamp in stamps]
    values = np.where(np.arange(len(stamps)) < context, 1.0 + np.arange(len(stamps)) % 2, np.nan)
    frame = pd.DataFrame({columns.timestamp_column: times, columns.target_column: values})
    for name in columns.id_columns:
        frame.insert(0, name, "a")
    for name, kinds in trained["features"]["categories"].items():
        frame[name] = kinds[0]
    for name in (*columns.known_covariates, *columns.past_covariates, *columns.static_reals):
        frame[name] = 1.0
    return frame


def _arrow(data: Any) -> Any:
    import pandas as pd

    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pd.DataFrame):
        try:
            return pa.Table.from_pandas(data, preserve_index=False)
        except pa.ArrowException as error:
            raise ConfigError(f"the table: {' '.join(str(error).split())}") from error
    raise ConfigError(f"a {type(data).__name__} holds no series: give a long table (pandas, Arrow), or its file")
