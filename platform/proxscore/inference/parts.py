"""The parts of an optimizer: sets of parameters that are drawn, scored and moved in one way.

A parameter group has up to three kinds: the mean-field Gaussian in place on shards (:mod:`proxscore.inference.shards`),
families over blocks of parameters (:mod:`proxscore.inference.blocks`), and point estimates
(:mod:`proxscore.inference.points`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.convergence import Probed
from proxscore.inference.monitor import Monitor
from proxscore.inference.priors import Assignment
from proxscore.inference.step import Draw, ProximalStep

#: A parameter's optimizer state, by parameter.
States = Mapping[Tensor, dict[str, Any]]


@dataclass
class Member:
    """A trained parameter: its name, its prior, and where its local shard starts in the flattened whole.

    Args:
        initial_precision: of a sampled parameter: that of the data and the prior.
        prior_mean: the whole tensor, where there is one that counts.
    """

    name: str
    parameter: Tensor
    prior: Assignment
    start: int
    initial_precision: float
    prior_mean: Tensor | None

    def prior_mean_shard(self) -> Tensor:
        """The prior mean, placed as the parameter is."""
        assert self.prior_mean is not None
        placed = torch.zeros_like(self.parameter.detach())
        shard = noise.local(placed)
        shard.copy_(self.prior_mean.reshape(-1)[self.start : self.start + len(shard)])
        return placed


class Part(ABC):
    """Parameters that are drawn, scored and moved in one way; ``members`` are those that take part in a draw loop."""

    members: list[Member]

    @abstractmethod
    def begin(self, state: States) -> None:
        """Before the first draw of a step: the weights are the mean, and count as such."""

    @abstractmethod
    def sample(self, draw: Draw) -> None:
        """Put a draw into the weights; at the first of a pair, or a single one, drop the gradients."""

    def gradients(self) -> list[Tensor]:
        """The local gradients of ``members``, flat; zero where the loss does not depend on a parameter."""
        for member in self.members:
            if member.parameter.grad is None:  # its likelihood is flat, the prior still counts
                member.parameter.grad = torch.zeros_like(member.parameter)
        return [noise.local(member.parameter.grad) for member in self.members if member.parameter.grad is not None]

    @abstractmethod
    def take(self, draw: Draw, gradients: list[Tensor]) -> None:
        """Take the gradients of the mean negative log-likelihood at the draw that is in the weights."""

    @abstractmethod
    def taken(self) -> list[Tensor]:
        """What was taken in this step, as local tensors: sums over its draws, which draw groups add up in place."""

    @abstractmethod
    def restore(self) -> None:
        """Put the mean into the weights."""

    @abstractmethod
    def step(self, step: ProximalStep, monitor: Monitor | None) -> None:
        """The proximal step, from what was taken; the weights are the new mean."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what was taken since the last step."""

    def probed(self, momentum: float, age: int) -> Iterator[Probed]:
        """What the last steps say of convergence (:mod:`proxscore.inference.convergence`): of nothing by default.

        Args:
            momentum: decay of the running score.
            age: steps taken.
        """
        yield from ()

    def save_probes(self, state: States) -> None:
        """Write what :meth:`probed` stands on into the optimizer's state, under ``probes``."""
        return

    def load_probes(self, state: States, age: int) -> None:
        """Read what :meth:`save_probes` wrote; where there is nothing, nothing was seen yet."""
        return


def trained(members: list[Member]) -> list[Member]:
    """Those that nobody froze since the optimizer was built."""
    return [member for member in members if member.parameter.requires_grad]
