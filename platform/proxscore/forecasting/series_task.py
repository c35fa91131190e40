"""Forecasting as a task: its series, its network, its likelihood, its metrics and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxscore.config import Config, ConfigError
from proxscore.forecasting.distributions import LIKELIHOODS
from proxscore.forecasting.evaluator import ForecastEvaluator
from proxscore.forecasting.interval_ends import group_names
from proxscore.forecasting.networks import Features, plan
from proxscore.forecasting.predictive import predict
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.splits import Split, record, scale_floor, unit
from proxscore.forecasting.task import ForecastingConfig
from proxscore.forecasting.trained import as_trained, features, trained_unit
from proxscore.forecasting.windows import Panel, Windows, training_index
from proxscore.tasks import Task


@dataclass(frozen=True)
class ForecastData:
    """Windows of the three parts, and a record of how they were split."""

    train: Windows
    validation: Windows
    test: Windows
    splits: dict[str, Any]


class SeriesTask(Task):
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

    predict = staticmethod(predict)

    def __init__(
        self, config: ForecastingConfig, *, verify: bool = True, trained: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config
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
        self.evaluator = ForecastEvaluator(self)

    @property
    def summary(self) -> str:
        return f"{self.data.splits['counts']} windows of {len(self.series.series)} series, frequency {self.series.frequency}"

    def check(self, config: Config) -> None:
        """Refuse settings of a run that forecasting networks do not serve.

        Raises:
            ConfigError: names the setting.
        """
        super().check(config)
        if self.config.conformal.kind != "none":
            group_names(self.series, self.config.conformal.groups)
        if config.evaluation.temperature_scaling:
            raise ConfigError("evaluation.temperature_scaling: forecasts have no temperature: leave it out")
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


def _index(origins: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 2), series and origin of every window."""
    pairs = [np.stack([np.full_like(each, number), each], 1) for number, each in enumerate(origins)]
    return np.concatenate(pairs)
