"""The reverse Kullback-Leibler penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.inference.families.base import Family, State, Total
from proxscore.inference.penalties.base import Penalty, Weight, is_infinite

#: Newton steps for the reverse divergence's cubic; from r = 1 they converge quadratically and never leave (0, 3).
NEWTON_STEPS = 12


@dataclass(frozen=True)
class ReverseKL(Penalty):
    """Reverse Kullback-Leibler penalty KL(candidate || anchor), split as the forward one:

        P(r, d) = precision * (log r + 1 / r - 1)  +  mean * d^2 / r^2        per coordinate.

    r is a root of g(r) = r - k + kappa (r - 1) / r^2, the minimiser nearest to the anchor. g is concave on (0, 3), so
    Newton's method from r = 1 reaches it monotonically, or finds that g stays negative: there is no minimiser then, as
    the penalty grows too slowly with the distance. r is kept within [1/3, 3]. The mean moves by u r / (r^2 + 2 * mean)
    standard deviations.
    """

    def _solution(self, curvature: Tensor, weight: Weight) -> Tensor:
        r = torch.ones_like(curvature)
        for _ in range(NEWTON_STEPS):
            slope = (1 + weight * (2 - r) / (r * r * r)).clamp(min=1e-6)  # no slope left: no minimiser, on to 3
            r = (r - (r - curvature + weight * (r - 1) / (r * r)) / slope).clamp(1 / 3, 3.0)
        return r

    def mean_step(self, score: Tensor, ratio: Tensor, weight: Weight) -> Tensor:
        return torch.zeros_like(score) if is_infinite(weight) else score * ratio / (ratio * ratio + 2 * weight)

    def check_family(self, family: Family) -> None:
        if type(family).kl is Family.kl:
            raise ValueError(
                f"penalty reverse_kl: family {family.kind} has no divergence in closed form; use forward_kl or quadratic"
            )

    def value(
        self,
        family: Family,
        anchor: State,
        candidate: State,
        weights: tuple[float, float],
        draws: Sequence[Tensor],
        total: Total,
    ) -> Tensor:
        """2 kappa_Lambda KL_precision + 2 kappa_m KL_mean of KL(candidate || anchor)."""
        parts = family.kl(candidate, anchor, total)
        assert parts is not None
        return 2 * weights[0] * parts[0] + 2 * weights[1] * parts[1]
