"""What comes after the data: forecasts as a table, and as GluonTS's ``Forecast`` objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from gluonts.model.forecast import SampleForecast

from proxscore.forecasting.anchoring import given_forecasts
from proxscore.forecasting.anchors import as_described
from proxscore.forecasting.baselines import History
from proxscore.forecasting.features import Features
from proxscore.forecasting.intervals import Interval
from proxscore.forecasting.network import ForecastNetwork
from proxscore.forecasting.networks import plan, takes
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.series_task import SeriesTask
from proxscore.forecasting.task import ForecastingConfig
from proxscore.forecasting.trained import anchor_kind, as_trained, trained_context, trained_likelihood, trained_unit
from proxscore.forecasting.windows import Panel, Windows

_CALIBRATED = ("lower_", "upper_")  # columns that are null where there is no such interval


class Forecaster:
    """What a trained network needs of new series to forecast what comes after them: their context, and no splits.

    Args:
        config: the task's section of the configuration.
        trained: what :meth:`SeriesTask.describe` said of the data of training.
        series: new ones; by default those of ``config.data``.

    Raises:
        ConfigError: see :func:`proxscore.forecasting.trained.as_trained`.
    """

    def __init__(self, config: ForecastingConfig, trained: Mapping[str, Any], series: SeriesData | None = None) -> None:
        self.config = config
        self.series = as_trained(series or config.data.load(trained["frequency"]), trained, config.model.name)
        entries = self.series.to_gluonts()
        self.seasons = list(trained.get("seasons", []))
        context = config.context or trained_context(trained, config.horizon)
        assert context is not None
        self.blueprint = plan(
            config.model.name,
            config.model.kwargs,
            frequency=trained["frequency"],
            horizon=config.horizon,
            context=context,
            features=Features.of(entries, [len(values) for values in self.series.categories.values()]),
            likelihood=trained_likelihood(config.model, trained),
            anchor=anchor_kind(config.model, trained),
            seasons=self.seasons,
        )
        found = trained.get("anchor")
        self.anchor = None if found is None else as_described(found, config.horizon)
        self.scale_floor = float(trained.get("scale_floor", 0.0))
        self.unit = trained_unit(trained)
        #: Names of series that are shorter than the context: zeros stand before them.
        self.short = [each.id for each in self.series.series if len(each) < context]

    def history(self) -> History:
        """The series, all of whose steps are known, as methods that are fitted one by one take them."""
        targets = [each.target for each in self.series.series]
        return History(targets, [len(each) for each in targets], self.config.horizon, self.seasons or [1], self.unit)

    def build_model(self) -> ForecastNetwork:
        """The network, with numbers that are to be loaded."""
        return self.blueprint.build(None, self.scale_floor, self.unit, self.anchor)


def floored(network: ForecastNetwork, windows: Windows, batch: int = 256) -> list[str]:
    """Names of the series whose forecasts have the floor for their scale: their contexts are zero, or constant."""
    device, found = next(network.parameters()).device, []
    for first in range(0, len(windows), batch):
        items = range(first, min(first + batch, len(windows)))
        flags = network.floored(windows.__getitems__(items)[0].to(device)).tolist()
        found += [windows.panel.ids[windows.index[item, 0]] for item, flag in zip(items, flags, strict=True) if flag]
    return found


def ahead(task: SeriesTask | Forecaster) -> Windows:
    """For each series the window whose first step comes after its last one.

    Raises:
        ConfigError: known covariates that end before the horizon; names the series.
    """
    series, horizon = task.series, task.config.horizon
    covered = horizon if "known" in takes(task.config.model.name) else 0
    panel = Panel(
        series.to_gluonts(covered),
        task.blueprint.transformation,
        task.blueprint.packing,
        horizon,
        beyond=horizon,
        forecast=given_forecasts(task.anchor, task.history()),
    )
    ends = [len(each) for each in series.series]
    return Windows(panel, np.stack([np.arange(len(ends)), np.array(ends)], 1).astype(np.int64))


def table(
    predictive: ForecastPredictive,
    data: SeriesData,
    quantiles: Sequence[float],
    intervals: Sequence[Interval] = (),
    *,
    rolling: bool = False,
) -> pa.Table:
    """A row per series and step: series, timestamp (as those of the data go on, in their zone and of their type; UTC where
    series have several zones), step (from 1), mean, aleatoric_sd, epistemic_sd,
    a column per quantile, ``q0.05``, and two per calibrated interval, ``lower_90, upper_90``; all but the first three float64
    in the unit of the target; and, where the network can tell, whether the past is ``unlike_training``.

    Args:
        intervals: of all windows.
        rolling: of windows whose targets are known: also ``origin``, the timestamp of the first step, and ``target``.
    """
    parts, first = [], 0
    for chunk in predictive.chunks():
        rows = slice(first, first := first + len(chunk.mean))
        columns = {"mean": chunk.mean}
        for name, variance in (("aleatoric_sd", chunk.aleatoric), ("epistemic_sd", chunk.epistemic)):
            if variance is not None:
                columns[name] = variance.sqrt()
        columns |= {f"q{q:g}": value for q, value in zip(quantiles, chunk.quantiles(quantiles), strict=True)}
        for each in intervals:
            ends = zip(_CALIBRATED, (each.lower, each.upper), strict=True)
            columns |= {f"{name}{100 * each.level:g}": end[rows] for name, end in ends}
        numbers, origins = chunk.targets[:, 2, 0].long().tolist(), chunk.targets[:, 3, 0].long().tolist()
        horizon = chunk.mean.shape[1]
        stamps = [data.series[n].timestamps(o, horizon) for n, o in zip(numbers, origins, strict=True)]
        named = {"series": pa.array(np.repeat([data.series[n].id for n in numbers], horizon))}
        if rolling:
            named["origin"] = _arrow([each[[0] * horizon] for each in stamps], data)
        named |= {
            "timestamp": _arrow(stamps, data),
            "step": pa.array(np.tile(np.arange(1, horizon + 1), len(numbers))),
        }
        if rolling:
            values, observed = chunk.targets[:, 0].double().flatten(), chunk.targets[:, 1].flatten() > 0
            named["target"] = pa.array(values.numpy(), mask=~observed.numpy())
        flat = {name: value.double().flatten().numpy() for name, value in columns.items()}
        named |= {name: pa.array(v, from_pandas=name.startswith(_CALIBRATED)) for name, v in flat.items()}
        if chunk.unlike is not None:
            named["unlike_training"] = pa.array(np.repeat(chunk.unlike.numpy(), horizon))
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
