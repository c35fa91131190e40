"""Proximal penalties: how far one iteration may carry the variational distribution from its anchor.

In whitened coordinates of a Gaussian anchor, a candidate is r = precision ratio and d = whitened natural mean (r = 1,
d = 0 at the anchor; its mean lies d / r from the anchor's), and the score-matching loss per coordinate is
(r - k)^2 / 2 + (d - u)^2 / 2 up to constants, where k is the curvature statistic and u the mean statistic. A penalty
supplies the minimiser of loss plus penalty, first in r, then in d given r. For a full covariance, the coordinates are
the eigenvectors of the curvature statistic. To add one: a class here, and a line in ``PENALTIES``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from proxscore.inference.schedules import Schedule

Tensors = list[Tensor] | tuple[Tensor, ...]

#: Newton steps for the reverse divergence's cubic; from r = 1 they converge quadratically and never leave (0, 3).
NEWTON_STEPS = 12

#: The ratio of a penalty whose own solution is smaller, or negative: no precision; a trust region takes over from there.
SMALLEST_RATIO = 1e-3


@dataclass(frozen=True)
class Penalty(ABC):
    """Proximal weights of precision and mean, and their schedules.

    Args:
        precision: proximal weight of the precision (kappa_Lambda, dimensionless, positive). About the number of steps
            of the run: then the log-precision of a coordinate without curvature falls by about one over the run.
        mean: proximal weight of the mean (kappa_m, positive); the mean's largest step is 1 / (1 + 2 * mean).
        precision_schedule, mean_schedule: factors on the two steps over time.
    """

    #: Whether every solution r is positive by itself; others are kept above ``SMALLEST_RATIO``.
    positive: ClassVar[bool] = True

    precision: float = 1000.0
    mean: float = 2.0
    precision_schedule: Schedule = field(default_factory=Schedule)
    mean_schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        for name in ("precision", "mean"):
            if not getattr(self, name) > 0:
                raise ValueError(f"penalty.{name} is {getattr(self, name)}; it must be positive")

    def resolve(self, total_steps: int, steps_per_epoch: int) -> Self:
        """The same penalty with both schedules counted in steps."""
        return replace(
            self,
            precision_schedule=self.precision_schedule.resolve(total_steps, steps_per_epoch),
            mean_schedule=self.mean_schedule.resolve(total_steps, steps_per_epoch),
        )

    def weights(self, step: int) -> tuple[float, float]:
        """The weights (precision, mean) in force at a step; infinite where the schedule is at zero."""

        def weight(peak: float, factor: float) -> float:
            return peak / factor if factor > 0 else math.inf

        precision, mean = self.precision_schedule.factor(step), self.mean_schedule.factor(step)
        return weight(self.precision, precision), weight(self.mean, mean)

    def precision_ratio_(self, curvature: Tensors, weight: float) -> Tensors:
        """Turn curvature statistics k into precision ratios r, in place; an infinite weight gives r = 1."""
        if math.isinf(weight):
            torch._foreach_zero_(curvature)
            torch._foreach_add_(curvature, 1.0)
        else:
            self._solve_(curvature, weight)
            if not self.positive:
                torch._foreach_clamp_min_(curvature, SMALLEST_RATIO)
        return curvature

    @abstractmethod
    def _solve_(self, curvature: Tensors, weight: float) -> None:
        """The minimiser r of (r - k)^2 / 2 + P(r), in place of k, for a finite weight."""

    @abstractmethod
    def mean_step_(self, score: Tensors, ratio: Tensors, weight: float) -> Tensors:
        """Turn whitened mean statistics u into steps of the mean (whitened by the anchor), in place, given r."""


@dataclass(frozen=True)
class ForwardKL(Penalty):
    """Forward Kullback-Leibler penalty KL(anchor || candidate), split into its precision and its mean part:

        P(r, d) = precision * (r - 1 - log r)  +  mean * d^2 / r        per coordinate.

    The minimiser is r = [(k - kappa) + sqrt((k - kappa)^2 + 4 kappa)] / 2 > 0 with kappa the precision weight, and the
    mean moves by u / (r + 2 * mean) posterior standard deviations. To first order in 1/kappa this is natural-gradient
    variational inference. Source: M. Kim, arXiv 2602.05873; the natural-gradient limit is IVON's (arXiv 2402.17641).
    """

    def _solve_(self, curvature: Tensors, weight: float) -> None:
        # max(a, 0) + 2 kappa / (sqrt(a^2 + 4 kappa) + |a|) with a = k - kappa, which cancels nowhere.
        torch._foreach_sub_(curvature, weight)
        root = torch._foreach_mul(curvature, curvature)
        torch._foreach_add_(root, 4 * weight)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, torch._foreach_abs(curvature))
        torch._foreach_reciprocal_(root)
        torch._foreach_clamp_min_(curvature, 0.0)
        torch._foreach_add_(curvature, root, alpha=2 * weight)

    def mean_step_(self, score: Tensors, ratio: Tensors, weight: float) -> Tensors:
        torch._foreach_div_(score, torch._foreach_add(ratio, 2 * weight))
        return score


@dataclass(frozen=True)
class ReverseKL(Penalty):
    """Reverse Kullback-Leibler penalty KL(candidate || anchor), split as the forward one:

        P(r, d) = precision * (log r + 1 / r - 1)  +  mean * d^2 / r^2        per coordinate.

    r is a root of g(r) = r - k + kappa (r - 1) / r^2, the minimiser nearest to the anchor. g is concave on (0, 3), so
    Newton's method from r = 1 reaches it monotonically, or finds that g stays negative: there is no minimiser then, as
    the penalty grows too slowly with the distance. r is kept within [1/3, 3]. The mean moves by u r / (r^2 + 2 * mean)
    standard deviations.
    """

    def _solve_(self, curvature: Tensors, weight: float) -> None:
        for k in curvature:
            r = torch.ones_like(k)
            for _ in range(NEWTON_STEPS):
                slope = (1 + weight * (2 - r) / r.pow(3)).clamp_min_(1e-6)  # no slope left: no minimiser, on to 3
                r -= (r - k + weight * (r - 1) / r.square()) / slope
                r.clamp_(1 / 3, 3.0)
            k.copy_(r)

    def mean_step_(self, score: Tensors, ratio: Tensors, weight: float) -> Tensors:
        if math.isinf(weight):
            torch._foreach_zero_(score)
            return score
        torch._foreach_mul_(score, ratio)
        torch._foreach_div_(score, torch._foreach_add(torch._foreach_mul(ratio, ratio), 2 * weight))
        return score


@dataclass(frozen=True)
class Quadratic(Penalty):
    """Quadratic penalty, the forward one to second order about the anchor:

        P(r, d) = precision * (r - 1)^2 / 2  +  mean * d^2        per coordinate.

    r = (k + kappa) / (1 + kappa), which is not positive for every k: it needs a trust region of the precision. The mean
    moves by u / (r (1 + 2 * mean)) standard deviations.
    """

    positive: ClassVar[bool] = False

    def _solve_(self, curvature: Tensors, weight: float) -> None:
        torch._foreach_add_(curvature, weight)
        torch._foreach_div_(curvature, 1 + weight)

    def mean_step_(self, score: Tensors, ratio: Tensors, weight: float) -> Tensors:
        torch._foreach_div_(score, ratio)
        torch._foreach_mul_(score, 0.0 if math.isinf(weight) else 1 / (1 + 2 * weight))
        return score


@dataclass(frozen=True)
class NoPenalty(Penalty):
    """No penalty: score matching alone, for the ablation. r = k (it needs a trust region), and the mean moves by u / r.

    The weights are read in one case only: where a schedule is at zero, that part of the iterate stays where it is.
    """

    positive: ClassVar[bool] = False

    def _solve_(self, curvature: Tensors, weight: float) -> None:
        return

    def mean_step_(self, score: Tensors, ratio: Tensors, weight: float) -> Tensors:
        if math.isinf(weight):
            torch._foreach_zero_(score)
        else:
            torch._foreach_div_(score, ratio)
        return score


PENALTIES: dict[str, type[Penalty]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "quadratic": Quadratic,
    "none": NoPenalty,
}
