"""What a task is: data and a network to train, and somebody who judges what it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import Config, ConfigError
from proxscore.posterior import Posterior, predict
from proxscore.posterior.calls import Batches
from proxscore.tasks.judge import Judge


class Task(ABC):
    """What trains: data, network, likelihood and predictive. A subclass changes what is different of it.

    Attributes:
        config: the section of the configuration that the task was built from; it has ``model`` and ``data``.
        data: ``train``, ``validation`` and ``test``: data sets with ``len``, whose ``__getitems__(rows)`` gives inputs (N, ...)
            and targets (N, ...) of N rows.
        likelihood: an ``nn.Module`` whose ``nll`` gives the negative log-likelihood in nats, (N,), of the network's outputs
            (N, ...) and targets (N, ...); see :mod:`proxscore.inference.likelihoods`.
        judge: metrics and figures of what is predicted; by default the NLL alone.
    """

    config: Any
    data: Any
    likelihood: Any
    judge: Judge = Judge()

    @abstractmethod
    def build_model(self, device: torch.device | None = None) -> nn.Module:
        """The network; on the meta device without numbers."""

    @property
    def summary(self) -> str:
        """The data in a line."""
        return ", ".join(f"{part} {count}" for part, count in self.counts().items())

    def counts(self) -> dict[str, int]:
        """Rows of each part."""
        return {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")}

    def describe(self) -> dict[str, Any]:
        """What to record of the data; a saved posterior brings it along."""
        return {"kind": self.config.data.kind, "splits": {"counts": self.counts()}}

    def check(self, config: Config) -> None:
        """Refuse settings of a run that do not serve the task.

        Raises:
            ConfigError: names the setting.
        """
        if config.evaluation.shifts:
            self.shifted(config.evaluation.shifts[0])

    def shifted(self, name: str) -> tuple[Any, bool]:
        """The test split under a shift of ``evaluation.shifts``, and whether its targets still hold.

        Raises:
            ConfigError: the task knows no shifts.
        """
        raise ConfigError("evaluation.shifts: they are of images: leave it out")

    def streamed_rows(self, workers: int, cpus_per_worker: float) -> Any:
        """The training rows for one of so many workers, as Ray Data streams them; asked for where the data are ``streamed``."""
        raise NotImplementedError(f"{type(self).__name__} has no rows to stream")

    def example(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch's shape and type, all zero."""
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
        draws: int,
        seed: int,
        refresh: Batches | None,
        autocast: torch.dtype | None,
    ) -> Any:
        """The predictive distribution of a posterior over the module's weights; see :func:`proxscore.posterior.predict`."""
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
