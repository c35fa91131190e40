"""Proximal penalties: how far one iteration may carry the variational distribution from its anchor.

In whitened coordinates of a mean-field Gaussian anchor, a candidate is r = precision ratio and d = whitened natural
mean (r = 1, d = 0 at the anchor), and the score-matching loss per coordinate is (r - k)^2 / 2 + (d - u)^2 / 2 up to
constants, where k is the curvature statistic and u the mean statistic. A penalty supplies the minimiser of loss plus
penalty, coordinate by coordinate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from proxscore.inference.schedules import Schedule

Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class ForwardKL:
    """Forward Kullback-Leibler penalty KL(anchor || candidate), split into its precision and its mean part:

        P(r, d) = precision * (r - 1 - log r)  +  mean * d^2 / r        per coordinate.

    The minimiser is r = [(k - kappa) + sqrt((k - kappa)^2 + 4 kappa)] / 2 > 0 with kappa the precision weight, and the
    mean moves by u / (r + 2 * mean) posterior standard deviations. To first order in 1/kappa this is natural-gradient
    variational inference. Source: M. Kim, arXiv 2602.05873; the natural-gradient limit is IVON's (arXiv 2402.17641).

    Args:
        precision: proximal weight of the precision (kappa_Lambda, dimensionless, positive). About the number of steps
            of the run: then the log-precision of a coordinate without curvature falls by about one over the run.
        mean: proximal weight of the mean (kappa_m, positive); the mean's largest step is 1 / (1 + 2 * mean).
        precision_schedule, mean_schedule: factors on the two steps over time.
    """

    precision: float = 1000.0
    mean: float = 2.0
    precision_schedule: Schedule = field(default_factory=Schedule)
    mean_schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        for name in ("precision", "mean"):
            if not getattr(self, name) > 0:
                raise ValueError(f"penalty.{name} is {getattr(self, name)}; it must be positive")

    def resolve(self, total_steps: int, steps_per_epoch: int) -> ForwardKL:
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

    @staticmethod
    def precision_ratio_(curvature: Tensors, weight: float) -> Tensors:
        """Turn curvature statistics k into precision ratios r, in place.

        Computed as max(a, 0) + 2 kappa / (sqrt(a^2 + 4 kappa) + |a|) with a = k - kappa, which cancels nowhere.
        """
        if math.isinf(weight):
            torch._foreach_zero_(curvature)
            torch._foreach_add_(curvature, 1.0)
            return curvature
        torch._foreach_sub_(curvature, weight)
        root = torch._foreach_mul(curvature, curvature)
        torch._foreach_add_(root, 4 * weight)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, torch._foreach_abs(curvature))
        torch._foreach_reciprocal_(root)
        torch._foreach_clamp_min_(curvature, 0.0)
        torch._foreach_add_(curvature, root, alpha=2 * weight)
        return curvature

    @staticmethod
    def mean_step_(score: Tensors, ratio: Tensors, weight: float) -> Tensors:
        """Turn whitened mean statistics u into whitened mean steps u / (r + 2 kappa_m), in place."""
        torch._foreach_div_(score, torch._foreach_add(ratio, 2 * weight))
        return score
