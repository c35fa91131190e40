"""Forecasting as a task: its series, its network, its likelihood, its metrics and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proxscore.config import Config, ConfigError
from proxscore.forecasting.anchoring import (
    SECONDS,
    Forecasts,
    given_choice,
    given_forecasts,
    linear_choice,
    told,
)
from proxscore.forecasting.anchors import BLOCKS, METHODS, Anchor, Units, as_described, described, fit, given
from proxscore.forecasting.baselines import History, seasons
from proxscore.forecasting.blueprint import Blueprint
from proxscore.forecasting.evaluator import ForecastEvaluator
from proxscore.forecasting.features import Features
from proxscore.forecasting.interval_ends import group_names
from proxscore.forecasting.likelihoods.choosing import chosen
from proxscore.forecasting.likelihoods.excluded import check_targets, first_of
from proxscore.forecasting.likelihoods.names import LIKELIHOODS, check, nearest
from proxscore.forecasting.networks import plan
from proxscore.forecasting.predictive import predict
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.splits import Split, default_context, record, repeated, scale_floor, unit
from proxscore.forecasting.task import ForecastingConfig
from proxscore.forecasting.trained import (
    anchor_kind,
    as_trained,
    features,
    trained_context,
    trained_likelihood,
    trained_unit,
)
from proxscore.forecasting.windows import Panel, Windows, folds, training_index
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
        seasons: steps of those that the frequency suggests and the training parts repeat, ascending.
        context: steps that the network looks back to.
        anchor: what the network starts from; none: from a window's own scale.
        scale_floor: least scale of a window.
        unit: what the network within counts targets in.
        blueprint: how the network fits the data.
        likelihood: of the H steps of a window given the network's outputs (B, H, K); ``likelihood_name`` its name.

    Raises:
        ConfigError: what is at fault in data or network, in one line.
    """

    predict = staticmethod(predict)

    def __init__(
        self, config: ForecastingConfig, *, verify: bool = True, trained: Mapping[str, Any] | None = None
    ) -> None:
        self.config = config
        self.series: SeriesData = config.data.load(None if trained is None else trained["frequency"])
        if trained is not None:
            self.series = as_trained(self.series, trained, config.model.name)
        self.splits: list[Split] = config.data.split(self.series, config.horizon)
        ends = [split.train_end for split in self.splits]
        suggested = repeated(seasons(self.series.frequency, self.series.season), ends, config.horizon)
        self.seasons = suggested if trained is None else list(trained.get("seasons", []))
        known = config.context or trained_context(trained, config.horizon)
        self.context: int = known or default_context(self.seasons, ends, config.horizon)
        own_floor = scale_floor(self.series, self.splits, config.model.scale_floor)
        self.scale_floor = float((trained or {}).get("scale_floor", own_floor))
        self.unit = unit(self.series, self.splits) if trained is None else trained_unit(trained)
        self._told: tuple[str, ...] = ()
        self._chosen: dict[str, str] = {}
        self.likelihood_name = self._likelihood() if trained is None else trained_likelihood(config.model, trained)
        self.likelihood = LIKELIHOODS[self.likelihood_name]()
        if config.model.likelihood == "auto":
            self._chosen["task.model.likelihood"] = self.likelihood_name
        self.anchor: Anchor | None = None
        kind = anchor_kind(config.model, trained)
        if trained is not None and kind is not None:
            self.anchor = as_described(trained["anchor"], config.horizon)
            self.blueprint, self.data = self._windows(kind, given_forecasts(self.anchor, self.history()))
        else:
            self.blueprint, self.data = self._windows(kind)
            if kind is not None:
                self._choose(kind)
        self.evaluator = ForecastEvaluator(self)

    def _likelihood(self) -> str:
        """The name of the likelihood that the section says, or that suits the training targets, which is told."""
        name, network = self.config.model.likelihood, self.config.model.name
        targets = [each.target[: split.train_end] for each, split in zip(self.series.series, self.splits, strict=True)]
        known = [int(min(split.test, default=split.train_end)) for split in self.splits]
        if name == "auto":
            kind = chosen(targets, min(self.seasons[:1] or [1]))
            name = nearest(kind.likelihood, network)
            instead = "" if name == kind.likelihood else f"; {network} does not know {kind.likelihood}"
            if (where := first_of(LIKELIHOODS[name], self.series, known)) is not None:
                name, instead = "student_t", f"; but {where} in its validation part"
            self._told = (f"likelihood {name}, by the training targets (task.model.likelihood): {kind.told}{instead}",)
            return name
        check(name, network)
        check_targets(name, LIKELIHOODS[name], self.series, known)
        return name

    def history(self) -> History:
        """The series as methods that are fitted one by one take them."""
        targets = [each.target for each in self.series.series]
        ends = [split.train_end for split in self.splits]
        return History(targets, ends, self.config.horizon, self.seasons or [1], self.unit)

    def _windows(self, anchor: str | None, forecasts: Forecasts | None = None) -> tuple[Blueprint, ForecastData]:
        """How the network fits the data, and the windows that it takes."""
        config, entries = self.config, self.series.to_gluonts()
        blueprint = plan(
            config.model.name,
            config.model.kwargs,
            frequency=self.series.frequency,
            horizon=config.horizon,
            context=self.context,
            features=Features.of(entries, [len(values) for values in self.series.categories.values()]),
            likelihood=self.likelihood_name,
            anchor=anchor,
            seasons=self.seasons,
        )
        panel = Panel(entries, blueprint.transformation, blueprint.packing, config.horizon, forecast=forecasts)
        train = training_index(
            [split.train_end for split in self.splits],
            config.horizon,
            past=self.context,
            least=max([config.horizon, *self.seasons[:1]]),
            stride=config.train_stride,
        )
        parts = {name: _index([getattr(split, name) for split in self.splits]) for name in ("validation", "test")}
        counts = {"train": len(train)} | {name: len(index) for name, index in parts.items()}
        return blueprint, ForecastData(
            Windows(panel, train, folds(train, BLOCKS)),
            Windows(panel, parts["validation"]),
            Windows(panel, parts["test"]),
            {"counts": counts} | record(self.splits, config.horizon),
        )

    def _choose(self, kind: str) -> None:
        """Fit what the network may start from to the training windows, and take the better by the validation windows."""
        wanted, horizon = self.config.model.anchor, self.config.horizon
        units, choices = Units(1, min(self.seasons[:1] or [1]), self.scale_floor / self.unit), []
        if wanted in ("auto", "linear"):
            anchor = fit(self.data.train, horizon, units, self.seasons, self.unit)
            choices.append(linear_choice(anchor, self.data.validation, self.unit))
        history, limit = self.history(), SECONDS if wanted == "auto" else None
        for method in [method for method in METHODS if wanted in ("auto", method)]:
            beside = given(self.data.train, replace(units, last=units.season), method, self.unit)
            found = given_choice(beside, history, self.splits, len(self.data.train), limit)
            choices += [] if found is None else [found]
        best = min(choices, key=lambda choice: choice.crps)
        self.anchor = best.anchor
        self._told += (told(choices),)
        if wanted == "auto":
            self._chosen["task.model.anchor"] = best.name
        if best.forecasts is not None:
            self.blueprint, self.data = self._windows("given", best.forecasts)

    @property
    def summary(self) -> str:
        return f"{self.data.splits['counts']} windows of {len(self.series.series)} series, frequency {self.series.frequency}"

    @property
    def told(self) -> tuple[str, ...]:
        return self._told

    @property
    def chosen(self) -> dict[str, str]:
        return self._chosen

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
            return self.blueprint.build(self.data.train, self.scale_floor, self.unit, self.anchor)

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
            "context": self.context,
            "seasons": self.seasons,
            "anchor": described(self.anchor),
            "likelihood": self.likelihood_name,
        }


def _index(origins: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 2), series and origin of every window."""
    pairs = [np.stack([np.full_like(each, number), each], 1) for number, each in enumerate(origins)]
    return np.concatenate(pairs)
