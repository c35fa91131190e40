"""The gradient solver: the proximal step of families without a closed form, by stochastic gradient steps.

For a fixed anchor q_t, ``inner_steps`` steps of any torch optimizer on the candidate's parameters for

    1/2 E_{theta ~ q_t} || grad log q(theta) - s-hat(theta) ||^2_{Sigma_t}  +  P(q_t, q)

with fresh draws from q_t and a fresh mini-batch each; then the anchor moves. With one inner step the gradient of the
penalty, taken at the anchor, is zero: it would do nothing. Source: M. Kim, arXiv 2602.05873.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from proxscore.inference.families import Family, State
from proxscore.inference.families.base import Total
from proxscore.inference.penalties import Penalty


@dataclass(frozen=True)
class GradientSolver:
    """Settings of the gradient solver.

    Args:
        inner_steps: optimizer steps for each anchor; more than one, or the penalty does nothing.
        optimizer: a torch optimizer, called as ``optimizer(tensors, lr=lr, **options)``.
        lr: its learning rate, in the families' whitened parameters (all of order one); times the mean's schedule.
        options: its other settings.
    """

    inner_steps: int = 10
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    lr: float = 0.01
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.inner_steps < 2:
            raise ValueError(f"solver.inner_steps is {self.inner_steps}; it must be at least 2: the penalty needs it")
        if not self.lr > 0:
            raise ValueError(f"solver.lr is {self.lr}; it must be positive")
        closure = inspect.signature(getattr(self.optimizer, "step", lambda closure=None: None)).parameters.get(
            "closure"
        )
        if closure is not None and closure.default is inspect.Parameter.empty:
            name = getattr(self.optimizer, "__name__", "optimizer")
            raise ValueError(
                f"solver.optimizer {name} evaluates the loss itself, by a closure, which a stochastic loss cannot serve; "
                "use for example Adam"
            )

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The inner optimizer of some tensors.

        Raises:
            ValueError: the optimizer refuses its settings, or these tensors.
        """
        try:
            return self.optimizer(list(parameters), lr=self.lr, **self.options)
        except (TypeError, ValueError) as error:
            name = getattr(self.optimizer, "__name__", "optimizer")
            raise ValueError(f"solver.options {dict(self.options)}: {name}: {error}") from None


def penalty_value(
    penalty: Penalty,
    family: Family,
    anchor: State,
    parameters: Mapping[str, Tensor],
    weights: tuple[float, float],
    draws: Sequence[Tensor],
    total: Total,
) -> Tensor | None:
    """P(anchor, candidate) for the gradient solver, differentiable in the candidate's parameters; none: no penalty.

    Args:
        weights: proximal weights (precision, mean).
        draws: two, mirrored, from the anchor.
        total: sums over the shards.

    Where a weight is infinite it is taken as 1e6: the candidate then stays where it is but for rounding.
    """
    precision, mean = (min(weight, 1e6) for weight in weights)
    candidate = family.candidate(anchor, parameters)
    return penalty.value(family, anchor, candidate, (precision, mean), draws, total)


def check_penalty(penalty: Penalty, family: Family) -> None:
    """Refuse a penalty that the gradient solver cannot take, with a family."""
    if type(penalty).value is Penalty.value:
        raise ValueError(f"penalty {type(penalty).__name__} has no form for the gradient solver")
    penalty.check_family(family)
