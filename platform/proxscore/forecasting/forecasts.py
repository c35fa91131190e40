"""What comes after the data: forecasts as a table, and as GluonTS's ``Forecast`` objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from gluonts.model.forecast import SampleForecast

from proxscore.calibration.quantiles import quantiles_of_sorted
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.task import ForecastingTask
from proxscore.forecasting.windows import Panel, Windows


def ahead(task: ForecastingTask) -> Windows:
    """For each series the window whose first step comes after its last one.

    Raises:
        ConfigError: known covariates that end before the horizon; names the series.
    """
    series, horizon = task.series, task.config.horizon
    panel = Panel(
        series.to_gluonts(horizon), task.blueprint.transformation, task.blueprint.packing, horizon, beyond=horizon
    )
    ends = [len(each) for each in series.series]
    return Windows(panel, np.stack([np.arange(len(ends)), np.array(ends)], 1).astype(np.int64))


def table(predictive: ForecastPredictive, data: SeriesData, quantiles: Sequence[float]) -> pa.Table:
    """A row per series and step: series, timestamp (as those of the data go on, in their zone and of their type; UTC where
    series have several zones), step (from 1), mean, aleatoric_sd, epistemic_sd,
    and a column per quantile, ``q0.05``; all but the first three float64 in the unit of the target."""
    parts = []
    for chunk in predictive.chunks():
        ordered = chunk.samples.double().sort(0).values
        columns = {"mean": chunk.mean}
        for name, variance in (("aleatoric_sd", chunk.aleatoric), ("epistemic_sd", chunk.epistemic)):
            if variance is not None:
                columns[name] = variance.sqrt()
        columns |= {
            f"q{q:g}": value for q, value in zip(quantiles, quantiles_of_sorted(ordered, quantiles), strict=True)
        }
        numbers, origins = chunk.targets[:, 2, 0].long().tolist(), chunk.targets[:, 3, 0].long().tolist()
        horizon = chunk.mean.shape[1]
        stamps = [data.series[n].timestamps(o, horizon) for n, o in zip(numbers, origins, strict=True)]
        named = {
            "series": pa.array(np.repeat([data.series[n].id for n in numbers], horizon)),
            "timestamp": _arrow(stamps, data),
            "step": pa.array(np.tile(np.arange(1, horizon + 1), len(numbers))),
        }
        named |= {name: pa.array(value.double().flatten().numpy()) for name, value in columns.items()}
        parts.append(pa.table(named))
    return pa.concat_tables(parts)


def _arrow(stamps: Sequence[pd.DatetimeIndex], data: SeriesData) -> pa.Array:
    """Timestamps of all windows, of the type that the data came in."""
    zone = data.zone
    if zone is not None:
        stamps = [each.tz_convert("UTC").tz_localize(None) for each in stamps]
    values = pa.array(np.concatenate([each.to_numpy().astype("datetime64[ns]") for each in stamps]))
    if zone is not None:
        return values.cast(pa.timestamp("ns", zone)).cast(pa.timestamp(data.stamps.unit, zone))
    return values.cast(data.stamps)


def gluonts_forecasts(predictive: ForecastPredictive, data: SeriesData) -> Iterator[SampleForecast]:
    """One for each window, with its samples (n, H)."""
    for chunk in predictive.chunks():
        for row, target in enumerate(chunk.targets):
            each = data.series[int(target[2, 0])]
            yield SampleForecast(
                samples=chunk.samples[:, row].to(torch.float32).numpy(),
                start_date=each.start + int(target[3, 0]),
                item_id=each.id,
            )
