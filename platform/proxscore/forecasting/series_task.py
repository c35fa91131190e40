"""Forecasting as a task: its series, its network, its likelihood, its metrics and its figures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from proxscore.calibration.comparison import Curve
from proxscore.calibration.forecast_figures import (
    compared_forecasts,
    coverage_against_nominal,
    error_by_horizon,
    fan_chart,
    pit_histogram,
)
from proxscore.calibration.forecasting import ForecastMetrics
from proxscore.config import Config, ConfigError
from proxscore.forecasting.distributions import LIKELIHOODS
from proxscore.forecasting.networks import Features, plan
from proxscore.forecasting.predictive import ForecastPredictive, predict
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.splits import Split, record, scale_floor, season_errors, unit
from proxscore.forecasting.task import ForecastingConfig
from proxscore.forecasting.trained import as_trained, features, trained_unit
from proxscore.forecasting.windows import Panel, Windows, training_index

log = logging.getLogger(__name__)
FANS = 4  # series in the fan chart
FAN = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True)
class ForecastData:
    """Windows of the three parts, and a record of how they were split."""

    train: Windows
    validation: Windows
    test: Windows
    splits: dict[str, Any]


class SeriesTask:
    """Everything about forecasting that training, evaluation and tracking need.

    Args:
        config: the task's section of the configuration.
        verify: has no effect: tables are read as a whole, and checked, whenever they are opened.
        trained: what :meth:`describe` said of the data that the network was trained on, where those are others.

    Attributes:
        series: the data set; ``splits`` its parts by series; ``data`` their windows.
        context: steps that the network looks back to.
        scale_floor: least scale of a window.
        unit: what the network within counts targets in.
        blueprint: how the network fits the data.
        likelihood: of the H steps of a window given the network's outputs (B, H, K).

    Raises:
        ConfigError: what is at fault in data or network, in one line.
    """

    headline: tuple[str, ...] = ("crps", "nll", "mase", "coverage_90")
    columns: Sequence[tuple[str, str, int]] = (
        ("CRPS", "crps", 4),
        ("wQL", "mean_weighted_quantile_loss", 4),
        ("NLL", "nll", 4),
        ("MASE", "mase", 3),
        ("MSIS", "msis", 2),
        ("coverage 50", "coverage_50", 3),
        ("coverage 80", "coverage_80", 3),
        ("coverage 90", "coverage_90", 3),
        ("coverage 95", "coverage_95", 3),
        ("width 90", "width_90", 2),
        ("epistemic sd", "epistemic_sd", 3),
    )
    objectives: Mapping[str, bool] = dict.fromkeys(
        ("crps", "nll", "mean_weighted_quantile_loss", "mase", "msis", "mae", "mse"), False
    )
    predict = staticmethod(predict)

    def __init__(
        self, config: ForecastingConfig, *, verify: bool = True, trained: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config
        self._told: set[tuple[str, ...]] = set()
        self.context = config.context or 2 * config.horizon
        self.series: SeriesData = config.data.load(None if trained is None else trained["frequency"])
        if trained is not None:
            self.series = as_trained(self.series, trained, config.model.name)
        self.splits: list[Split] = config.data.split(self.series, config.horizon)
        entries = self.series.to_gluonts()
        self.blueprint = plan(
            config.model.name,
            config.model.kwargs,
            frequency=self.series.frequency,
            horizon=config.horizon,
            context=self.context,
            features=Features.of(entries, [len(values) for values in self.series.categories.values()]),
            likelihood=config.model.likelihood,
        )
        self.likelihood = LIKELIHOODS[config.model.likelihood]()
        panel = Panel(entries, self.blueprint.transformation, self.blueprint.packing, config.horizon)
        train = training_index(
            [split.train_end for split in self.splits],
            config.horizon,
            past=self.context,
            stride=config.train_stride,
        )
        parts = {name: _index([getattr(split, name) for split in self.splits]) for name in ("validation", "test")}
        counts = {"train": len(train)} | {name: len(index) for name, index in parts.items()}
        self.data = ForecastData(
            Windows(panel, train),
            Windows(panel, parts["validation"]),
            Windows(panel, parts["test"]),
            {"counts": counts} | record(self.splits, config.horizon),
        )
        own_floor = scale_floor(self.series, self.splits, config.model.scale_floor)
        self.scale_floor = float((trained or {}).get("scale_floor", own_floor))
        self.unit = unit(self.series, self.splits) if trained is None else trained_unit(trained)
        self.season_errors = torch.from_numpy(season_errors(self.series, self.splits))

    @property
    def summary(self) -> str:
        return f"{self.data.splits['counts']} windows of {len(self.series.series)} series, frequency {self.series.frequency}"

    def check(self, config: Config) -> None:
        """Refuse settings of a run that forecasting networks do not serve.

        Raises:
            ConfigError: names the setting.
        """
        if config.evaluation.temperature_scaling:
            raise ConfigError("evaluation.temperature_scaling: forecasts have no temperature: leave it out")
        if config.evaluation.shifts:
            raise ConfigError("evaluation.shifts: they are of images: leave it out")
        if config.training.precision != "fp32":
            raise ConfigError(
                f"training.precision={config.training.precision}: a window's inputs lie in one vector, whose categories and "
                "levels it would round: use fp32"
            )
        if config.training.meta_init:
            raise ConfigError(
                "training.meta_init: GluonTS's networks have constants that are not made shard by shard: leave it out"
            )

    def build_model(self, device: torch.device | None = None) -> nn.Module:
        """The network.

        Args:
            device: the meta device leaves out the numbers.
        """
        with device or nullcontext():
            return self.blueprint.build(self.data.train, self.scale_floor, self.unit)

    def example(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch's shape and type, all zero."""
        shape = rows, 4, self.config.horizon
        return torch.zeros(rows, self.blueprint.packing.size, device=device), torch.zeros(shape, device=device)

    def describe(self) -> dict[str, Any]:
        """What to record of the data: where they come from, and how they were split."""
        data = self.series
        return {
            "kind": self.config.data.kind,
            **data.record,
            "features": features(data),
            "splits": self.data.splits,
            "scale_floor": self.scale_floor,
            "unit": self.unit,
        }

    def shifted(self, name: str) -> Any:
        """There is none; see :meth:`check`."""
        raise ConfigError("evaluation.shifts: they are of images: leave it out")

    def judge(
        self, predictive: ForecastPredictive, bins: int, device: torch.device, title: str
    ) -> tuple[dict[str, float], Callable[[], dict[str, Figure]]]:
        """Metrics over all ranks' windows, and fan charts (of this rank's), PIT, coverage and errors by step ahead.

        Args:
            bins: of the PIT histogram.
        """
        metrics = self._metrics(predictive, bins, device)
        values = metrics.compute()
        self._tell_undefined(values)
        return values, lambda: {
            "fans": self._fans(predictive, title),
            "pit": pit_histogram(metrics.pit_counts, title=title),
            "coverage": coverage_against_nominal(
                metrics.levels, {"predictive": _coverage(metrics, values)}, title=title
            ),
            "errors": error_by_horizon({"predictive": metrics.by_horizon()}, title=title),
        }

    def _tell_undefined(self, values: dict[str, float]) -> None:
        """Say, once, which metrics are left out, and why."""
        missing = tuple(name for name in self.objectives if name not in values)
        if missing and missing not in self._told:
            self._told.add(missing)
            why = "no target of these windows is observed"
            if values["observed_steps"]:
                why = "the past of these series is constant, which gives no scale, or their targets are all 0"
            log.warning("undefined, and left out: %s (%s)", ", ".join(missing), why)

    def compared(self, predictive: ForecastPredictive) -> tuple[dict[str, float], dict[str, Tensor]]:
        """No more metrics; coverage by level, and CRPS by step ahead."""
        metrics = self._metrics(predictive, 10, torch.device("cpu"))
        values = metrics.compute()
        return {}, {
            "levels": torch.tensor(metrics.levels),
            "coverage": torch.tensor(_coverage(metrics, values)),
            "crps": metrics.by_horizon()["crps"],
        }

    def floors(self) -> dict[str, ForecastPredictive]:
        """What ``task.floors`` names, for the test windows."""
        from proxscore.forecasting.floors import floors, seasons

        data = self.series
        return floors(
            self.config.floors,
            [each.target for each in data.series],
            [split.train_end for split in self.splits],
            seasons(data.frequency, data.season),
            self.data.validation,
            self.data.test,
            self.unit,
        )

    def comparison_figure(self, curves: Sequence[Curve], bins: int) -> Figure:
        """Coverage against the nominal level, and CRPS by step ahead; means over seeds."""
        return compared_forecasts(curves)

    def _metrics(self, predictive: ForecastPredictive, bins: int, device: torch.device) -> ForecastMetrics:
        metrics = ForecastMetrics(self.config.horizon, len(self.series.series), bins=max(bins, 2)).to(device)
        for chunk in predictive.chunks():
            values, observed, series, _ = chunk.targets.unbind(1)
            series = series[:, 0].long()
            metrics.update(
                chunk.samples,
                values,
                observed,
                quantiles=None if chunk.steps is None else chunk.steps.quantiles,
                cdf=None if chunk.steps is None else chunk.steps.cdf(values),
                season_error=self.season_errors[series],
                series=series,
                log_density=chunk.log_density,
                mean=chunk.mean,
                aleatoric=chunk.aleatoric,
                epistemic=chunk.epistemic,
            )
        return metrics

    def _fans(self, predictive: ForecastPredictive, title: str) -> Figure:
        """The last window of some series, evenly spaced."""
        numbers = predictive.targets[:, 2, 0].long()
        last = {int(number): row for row, number in enumerate(numbers)}
        chosen = [last[key] for key in sorted(last)]
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(FANS, len(chosen))).astype(int)]
        part = ForecastPredictive(
            predictive.likelihood,
            predictive.outputs[:, chosen],
            None if predictive.paths is None else predictive.paths[:, chosen],
            predictive.targets[chosen],
            predictive.seed,
        )
        (chunk,) = part.chunks()
        values, observed, series, origins = chunk.targets.unbind(1)
        past = []
        for number, origin in zip(series[:, 0].long().tolist(), origins[:, 0].long().tolist(), strict=True):
            target = torch.from_numpy(self.series.series[number].target[max(0, origin - self.context) : origin])
            past.append(torch.cat([target.new_full((self.context - len(target),), torch.nan), target]))
        return fan_chart(
            torch.stack(past),
            torch.where(observed > 0, values, torch.nan),
            chunk.quantiles(FAN).float().movedim(0, 1),
            FAN,
            names=[self.series.series[number].id for number in series[:, 0].long().tolist()],
            title=title,
        )


def _coverage(metrics: ForecastMetrics, values: dict[str, float]) -> list[float]:
    """By level."""
    return [values.get(f"coverage_{100 * level:g}", math.nan) for level in metrics.levels]


def _index(origins: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 2), series and origin of every window."""
    pairs = [np.stack([np.full_like(each, number), each], 1) for number, each in enumerate(origins)]
    return np.concatenate(pairs)
