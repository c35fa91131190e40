"""What the optimizer asks of each of its parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.members import Member
from proxscore.inference.monitor import Monitor
from proxscore.inference.step import Draw, ProximalStep

if TYPE_CHECKING:
    from proxscore.inference.convergence.block_probes import BlockProbes
    from proxscore.inference.convergence.shard_probes import ShardProbes

#: The optimizer's state: named tensors, by parameter.
States = Mapping[Tensor, dict[str, Any]]


class Part(ABC):
    """Parameters that are drawn, scored and moved in one way.

    Attributes:
        members: those that take part in a draw loop.
        probes: what the last steps say of convergence; none: nothing is said of these parameters.
        keeps_mean: whether the mean is held beside the weights, so that a step's only draw may stay in them until the step.
        hold: whether it stays; the step does in one pass then what are two.
    """

    members: list[Member]
    probes: ShardProbes | BlockProbes | None = None
    keeps_mean = hold = False

    @abstractmethod
    def begin(self, state: States) -> None:
        """Prepare for the first draw of a step; the weights are the mean, also if somebody has changed them."""

    @abstractmethod
    def sample(self, draw: Draw) -> None:
        """Put a draw into the weights; at the first of a pair, or a single one, drop the gradients."""

    def gradients(self) -> list[Tensor]:
        """The local gradients of ``members``, flat; they are zero where the loss does not depend on a parameter."""
        for member in self.members:
            if member.parameter.grad is None:  # its likelihood is flat, the prior still counts
                member.parameter.grad = torch.zeros_like(member.parameter)
        return [noise.local(member.parameter.grad) for member in self.members if member.parameter.grad is not None]

    @abstractmethod
    def take(self, draw: Draw, gradients: list[Tensor]) -> None:
        """Take the gradients of the mean negative log-likelihood at the draw that is in the weights."""

    @abstractmethod
    def taken(self) -> list[Tensor]:
        """The sums over the draws of this step, as local tensors, which draw groups add up in place."""

    @abstractmethod
    def restore(self) -> None:
        """Put the mean into the weights, unless the part holds a draw that was taken."""

    @abstractmethod
    def step(self, step: ProximalStep, monitor: Monitor | None) -> None:
        """Take the proximal step from the sums over the draws; afterwards the weights are the new mean."""

    @abstractmethod
    def forget(self) -> None:
        """Drop the gradients that were taken since the last step; the weights are the mean afterwards."""

    def written(self) -> bool:
        """Whether somebody has written weights since a draw was left in them."""
        return False

    def forget_unwritten(self) -> None:
        """The same as :meth:`forget`, but weights that somebody has written since a draw was left in them stay as they are."""
        self.forget()
