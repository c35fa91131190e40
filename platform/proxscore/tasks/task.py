"""What a task is: data and a network to train, and what evaluates its predictions."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import Config, ConfigError
from proxscore.posterior import Posterior, predict
from proxscore.posterior.calls import Batches
from proxscore.posterior.settled import DrawCount
from proxscore.tasks.evaluator import Evaluator


class Task(ABC):
    """A task gives a run what it trains: data, network, likelihood and predictive. A subclass changes what is different of it.

    Attributes:
        config: the section of the configuration that the task was built from; it has ``model`` and ``data``.
        data: ``train``, ``validation`` and ``test``: data sets with ``len``, whose ``__getitems__(rows)`` gives inputs (N, ...)
            and targets (N, ...) of N rows.
        likelihood: an ``nn.Module`` whose ``nll`` gives the negative log-likelihood in nats, (N,), of the network's outputs
            (N, ...) and targets (N, ...); see :mod:`proxscore.inference.likelihoods`.
        evaluator: metrics and figures of what is predicted; by default the NLL alone.
    """

    config: Any
    data: Any
    likelihood: Any
    evaluator: Evaluator = Evaluator()

    def check_members(self) -> None:
        """Refuse a task that lacks what training needs of it.

        Raises:
            ConfigError: names the task, and what it lacks.
        """
        who = type(self).__qualname__
        for name in ("config", "data", "likelihood"):
            if not hasattr(self, name):
                raise ConfigError(f"task {who} has no {name}: set self.{name} when it is built")
        if not hasattr(self.likelihood, "nll"):
            raise ConfigError(
                f"task {who}: its likelihood {type(self.likelihood).__name__} has no method nll(outputs, targets)"
            )
        for part in ("train", "validation", "test"):
            rows = getattr(self.data, part, None)
            if rows is None:
                raise ConfigError(f"task {who}: its data have no part {part!r}")
            for name in ("__len__", "__getitems__"):
                if not hasattr(rows, name):
                    raise ConfigError(f"task {who}: its {part} data, {type(rows).__name__}, have no method {name}")
        if self.config.data.streamed and type(self).streamed_rows is Task.streamed_rows:
            raise ConfigError(
                f"task {who}: its source {self.config.data.kind} is streamed, and it has no method streamed_rows"
            )

    def saved_as(self, posterior: Posterior, module: nn.Module, seed: int) -> Posterior:
        """Give the posterior that is saved in place of the one that training left; by default that one.

        Args:
            module: the network; sharded, every rank calls this.
            seed: of draws, where it takes any.
        """
        return posterior

    @abstractmethod
    def build_model(self, device: torch.device | None = None) -> nn.Module:
        """Build the network on a device (by default the CPU); on the meta device it has shapes and no numbers."""

    @property
    def summary(self) -> str:
        """Say in a line which data these are."""
        return ", ".join(f"{part} {count}" for part, count in self.counts().items())

    @property
    def told(self) -> Sequence[str]:
        """What was chosen by the data, in lines that are shown when a job begins."""
        return ()

    @property
    def chosen(self) -> Mapping[str, str]:
        """Values of settings that were left to the data, by dotted key, as runs record them."""
        return {}

    def counts(self) -> dict[str, int]:
        """Count the rows of each part: train, validation and test."""
        return {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")}

    def describe(self) -> dict[str, Any]:
        """Describe the data as the run records them; a saved posterior brings the description along."""
        return {"kind": self.config.data.kind, "splits": {"counts": self.counts()}}

    def validation_fingerprint(self) -> str:
        """SHA-256 of what the validation split holds: posteriors are compared by its NLL where this agrees."""
        described = self.describe()
        held = {key: described.get(key) for key in ("kind", "splits", "class_names", "sha256", "features")}
        return hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode()).hexdigest()

    def check(self, config: Config) -> None:
        """Refuse settings of a run that do not serve the task.

        Raises:
            ConfigError: names the setting.
        """
        self.check_members()
        if config.evaluation.shifts:
            self.shifted(config.evaluation.shifts[0])

    def shifted(self, name: str) -> tuple[Any, bool]:
        """Give the test split under a shift of ``evaluation.shifts``, and whether its targets still hold.

        Raises:
            ConfigError: the task knows no shifts.
        """
        raise ConfigError("evaluation.shifts: they are of images: leave it out")

    def training_rows(self, seed: int) -> Any:
        """Give the data set that training reads: ``data.train``, unless it is to see views of these rows.

        Args:
            seed: of the views. A data set with an attribute ``by_epoch`` that is true is asked for item ``epoch * N + row``.
        """
        return self.data.train

    def streamed_rows(self, workers: int, cpus_per_worker: float, split: str = "train") -> Any:
        """Give the rows of a split as Ray Data streams them to each of so many workers, where the data are ``streamed``."""
        raise NotImplementedError(f"{type(self).__name__} has no rows to stream")

    def example(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Make inputs and targets of a batch's shape and type, all zero."""
        inputs, targets = (
            torch.zeros(rows, *part.shape[1:], dtype=part.dtype, device=device)
            for part in self.data.train.__getitems__([0])
        )
        return inputs, targets

    def predict(
        self,
        module: nn.Module,
        batches: Batches,
        posterior: Posterior | None,
        *,
        draws: DrawCount,
        seed: int,
        refresh: Batches | None,
        autocast: torch.dtype | None,
    ) -> Any:
        """Predict by draws from a posterior over the module's weights; see :func:`proxscore.posterior.predict`."""
        return predict(
            module,
            batches,
            posterior,
            draws=draws,
            seed=seed,
            refresh=refresh,
            autocast=autocast,
            likelihood=self.likelihood,
        )
