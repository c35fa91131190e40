"""Proximal penalties: how far one iteration may carry the variational distribution from its anchor.

In whitened coordinates of a Gaussian anchor, a candidate is r = precision ratio and d = whitened natural mean (r = 1,
d = 0 at the anchor; its mean lies d / r from the anchor's), and the score-matching loss per coordinate is
(r - k)^2 / 2 + (d - u)^2 / 2 up to constants, where k is the curvature statistic and u the mean statistic. A penalty
supplies the minimiser of loss plus penalty, first in r, then in d given r. For a full covariance, the coordinates are
the eigenvectors of the curvature statistic. To add one: a file here with a class, its
section in :mod:`proxscore.inference.penalties.sections`, and a line in :mod:`proxscore.config.components`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from proxscore.inference.schedules import Schedule

if TYPE_CHECKING:
    from proxscore.inference.families.base import Family, State, Total

#: A proximal weight: a number, or a tensor without dimensions that holds a finite one.
Weight = float | Tensor

#: The ratio of a penalty whose own solution is smaller, or negative: no precision; a trust region takes over from there.
SMALLEST_RATIO = 1e-3


def is_infinite(weight: Weight) -> bool:
    """Whether a proximal weight lets nothing move."""
    return isinstance(weight, float) and math.isinf(weight)


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

    def precision_ratio(self, curvature: Tensor, weight: Weight) -> Tensor:
        """The precision ratios r for curvature statistics k; an infinite weight gives r = 1."""
        if is_infinite(weight):
            return torch.ones_like(curvature)
        ratio = self._solution(curvature, weight)
        return ratio if self.positive else ratio.clamp(min=SMALLEST_RATIO)

    @abstractmethod
    def _solution(self, curvature: Tensor, weight: Weight) -> Tensor:
        """The minimiser r of (r - k)^2 / 2 + P(r) for a finite weight."""

    @abstractmethod
    def mean_step(self, score: Tensor, ratio: Tensor, weight: Weight) -> Tensor:
        """The step of the mean (whitened by the anchor) for whitened mean statistics u, given r; zero where the weight is
        infinite."""

    def check_family(self, family: Family) -> None:
        """Refuse a family with which the gradient solver cannot take this penalty.

        Raises:
            ValueError: names the penalty, and what would be right.
        """
        return

    def value(
        self,
        family: Family,
        anchor: State,
        candidate: State,
        weights: tuple[float, float],
        draws: Sequence[Tensor],
        total: Total,
    ) -> Tensor | None:
        """P(anchor, candidate) for the gradient solver, differentiable in the candidate; none: no penalty.

        Args:
            weights: finite proximal weights (precision, mean).
            draws: two, mirrored, from the anchor.
            total: sums over the shards.

        Raises:
            ValueError: the penalty has the closed-form step alone.
        """
        raise ValueError(f"penalty {type(self).__name__} has no form for the gradient solver")
