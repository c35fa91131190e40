"""What a method is: a torch optimizer that the training loop can ask a few more things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from proxscore.inference import noise
from proxscore.posterior import NameOf, Posterior
from proxscore.posterior.convergence import Verdict
from proxscore.posterior.diagnostics import Losses


@dataclass(frozen=True)
class RunLength:
    """The length of a run, which schedules refer to.

    Attributes:
        total_steps: of the run.
        steps_per_epoch: mini-batches in a pass over the training rows.
        data_size: training rows.
    """

    total_steps: int
    steps_per_epoch: int
    data_size: int


#: Batches that a method may look at before its first step.
FIRST_BATCHES = 10


def no_losses() -> Iterator[Tensor]:
    """No batches to look at before the first step."""
    return iter(())


@dataclass(frozen=True)
class Setup:
    """Everything that a method's optimizer is built from, beside its settings.

    Attributes:
        module: the network; its parameters may be sharded.
        run: the length of the run.
        seed: of the method's noise.
        losses: average losses of a few training batches, for a method that looks at data first; see
            :func:`proxscore.inference.initial.bearable_noise`.
        draw_mesh: the groups of processes that score different draws, for a method that makes draws.
    """

    module: nn.Module
    run: RunLength
    seed: int = 0
    losses: Callable[[], Iterator[Tensor]] = no_losses
    draw_mesh: DeviceMesh | None = None


class Method(torch.optim.Optimizer):
    """A torch optimizer for a network's posterior or point estimate; a subclass changes what is different of it.

    The loop runs its body, forward and backward, once per element of :meth:`draws`, and then takes a :meth:`step`.

    Attributes:
        evaluations_per_step: gradient evaluations of a step.
        found_inf: set before ``step`` to the workers' common answer whether a gradient is not finite; none: only this one's.
        hold_draw: whether the weights may stay at a draw until ``step``.
        monitor: whether the next step fills ``statistics``.
        statistics: values to record, of the local shards.
        has_verdict: whether :meth:`verdict` says something.
    """

    evaluations_per_step: int = 1
    found_inf: Tensor | bool | None = None
    hold_draw: bool = False
    monitor: bool = False
    statistics: dict[str, float]
    has_verdict: bool = False

    def parameters(self) -> list[Tensor]:
        """All parameters that are trained."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    @property
    def undecided(self) -> bool:
        """Whether the host does not know yet if the last step was skipped; the groups' ``skipped`` is without it then."""
        return False

    def draws(self) -> Iterator[int]:
        """One pass of the loop's body over the weights as they are, with cleared gradients."""
        self.zero_grad()
        yield 0

    @property
    def nonfinite(self) -> Tensor:
        """Whether a gradient of this worker is not finite (0 or 1, on the device)."""
        norms = torch._foreach_norm([noise.local(p.grad) for p in self.parameters() if p.grad is not None], 1)
        return 1.0 - torch.stack(norms).isfinite().all().float()

    def conclude(
        self, module: nn.Module, likelihood: Any, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]], rows: int
    ) -> None:
        """Do what is left to do at the end of training; by default nothing.

        Args:
            batches: called for a pass over the training rows.
            rows: their number.
        """

    def posterior_from(self, point: Posterior, name_of: NameOf) -> Posterior:
        """What is known beside the point estimate in the weights; by default nothing.

        Args:
            point: the weights as they are.
            name_of: the name of a parameter in it; see :meth:`proxscore.posterior.Posterior.of`.
        """
        return point

    def verdict(self, losses: Losses | None, rows: int) -> Verdict | None:
        """Whether the posterior converged; by default nothing is said. With sharded parameters, every worker calls it.

        Args:
            losses: on validation data, of mean and draws.
            rows: of the training data.
        """
        return None
