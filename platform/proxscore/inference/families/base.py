"""The interface of a variational family, for the solvers that work on whole blocks of parameters.

A block is a set of parameters that one distribution describes, flattened to a vector of D numbers. A family is
stateless: what it describes is a dictionary of tensors. To add one: a file here with a class, whose
constructor's arguments are its settings, and a line in :mod:`proxscore.config.components`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from proxscore.inference.step import ProximalStep

State = dict[str, Tensor]

#: Sums a tensor over the shards of a block (differentiably); the identity where the block is whole.
Total = Callable[[Tensor], Tensor]


class Family(ABC):
    """A variational family q(theta; state) over a vector of D numbers.

    Attributes:
        kind: its name in configurations and saved posteriors.
        shardable: it works on shards: the first dimension of every tensor of its state runs over the D numbers, and sums
            over them go through ``total``. The others are gathered: every rank holds and computes the whole block.
        per_parameter: each parameter is a block of its own (of its shape) instead of all of them together.
        antithetic: ``draw`` with sign -1 is the mirror image of the draw with sign +1.
        extra: standard normal numbers that a draw takes besides D.
    """

    kind: ClassVar[str]
    shardable: ClassVar[bool] = False
    per_parameter: ClassVar[bool] = False
    antithetic: ClassVar[bool] = True
    extra: int = 0

    def check(self, name: str, shape: torch.Size, size: int) -> None:
        """Refuse a block that the family cannot describe.

        Args:
            name: of its first parameter.
            shape: of its first parameter.
            size: D.

        Raises:
            ValueError: names the parameter or the setting, and what would be right.
        """
        return

    @abstractmethod
    def initial(self, mean: Tensor, precision: Tensor, shape: torch.Size, noise: Callable[[int], Tensor]) -> State:
        """A state about ``mean`` (D,) with variances about 1 / ``precision`` (D,); ``noise(j)`` is (D,), seeded."""

    @abstractmethod
    def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
        """theta (D,) from standard normal ``noise`` (D,) and ``extra``; ``sign`` -1: its mirror image."""

    @abstractmethod
    def mean(self, state: State) -> Tensor:
        """E theta, (D,)."""

    @abstractmethod
    def variance(self, state: State) -> Tensor:
        """Of each number, (D,)."""

    def covariance(self, state: State) -> Tensor:
        """(D, D), of a block that is not sharded; by default the numbers are independent."""
        return self.variance(state).diag()

    def score(self, state: State, weights: Tensor, total: Total) -> Tensor:
        """grad_theta log q(theta) at ``weights`` (D,), differentiable in the state; by default by automatic differentiation."""
        with torch.enable_grad():
            at = weights.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(state, at, total), at, create_graph=True)
        return gradient

    @abstractmethod
    def log_prob(self, state: State, weights: Tensor, total: Total) -> Tensor:
        """log q(theta), a scalar, differentiable in the state."""

    def norm(self, state: State, vector: Tensor, total: Total) -> Tensor:
        """The squared norm in which scores are matched, x^T Sigma x for a Gaussian: a scalar.

        By default Sigma has the variances alone.
        """
        return total((self.variance(state) * vector.square()).sum())

    @abstractmethod
    def parameters(self, anchor: State) -> State:
        """What the gradient solver optimizes: free numbers of order one; their values here give the anchor itself."""

    @abstractmethod
    def candidate(self, anchor: State, parameters: Mapping[str, Tensor]) -> State:
        """The state that ``parameters`` describe relative to an anchor, differentiable in them."""

    def kl(self, p: State, q: State, total: Total) -> tuple[Tensor, Tensor] | None:
        """KL(p || q) as its precision part and its mean part, or none where there is no closed form."""
        return None

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values: what it takes to build the family again.

        By default the attributes of the same names.
        """
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names if name not in ("args", "kwargs")}


class ClosedForm(ABC):
    """A family with a closed-form proximal step, in whitened coordinates eps = C^-1 (theta - m), Sigma = C C^T."""

    @abstractmethod
    def curvature(self, state: State, noise: Tensor, scores: list[Tensor], prior_precision: Tensor) -> Tensor:
        """The curvature statistic of a draw (one score: of the likelihood alone) or a pair (two: of the whole target)."""

    @abstractmethod
    def step(
        self,
        state: State,
        score: Tensor,
        curvature: Tensor,
        step: ProximalStep,
        metric: Tensor | None,
    ) -> Tensor:
        """The proximal step, in place; returns the precision ratios r.

        Args:
            score: mean statistic in weight units, E s-hat, (D,).
            curvature: mean of the draws' curvature statistics.
            step: weights and trust region of the penalty.
            metric: diagonal M of the mean's adaptive metric, (D,); none: the posterior's metric.
        """


def whole(value: Tensor) -> Tensor:
    """The :data:`Total` of a block that is not sharded."""
    return value
