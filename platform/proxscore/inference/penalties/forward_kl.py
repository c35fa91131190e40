"""The forward Kullback-Leibler penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from proxscore.inference.families.base import Family, State, Total
from proxscore.inference.penalties.base import Penalty, Weight


@dataclass(frozen=True)
class ForwardKL(Penalty):
    """Forward Kullback-Leibler penalty KL(anchor || candidate), split into its precision and its mean part:

        P(r, d) = precision * (r - 1 - log r)  +  mean * d^2 / r        per coordinate.

    The minimiser is r = [(k - kappa) + sqrt((k - kappa)^2 + 4 kappa)] / 2 > 0 with kappa the precision weight, and the
    mean moves by u / (r + 2 * mean) posterior standard deviations. To first order in 1/kappa this is natural-gradient
    variational inference. Source: M. Kim, arXiv 2602.05873; the natural-gradient limit is IVON's (arXiv 2402.17641).
    """

    def _solution(self, curvature: Tensor, weight: Weight) -> Tensor:
        # max(a, 0) + 2 kappa / (sqrt(a^2 + 4 kappa) + |a|) with a = k - kappa, which cancels nowhere.
        a = curvature - weight
        return a.clamp(min=0.0) + 2 * weight / ((a * a + 4 * weight).sqrt() + a.abs())

    def mean_step(self, score: Tensor, ratio: Tensor, weight: Weight) -> Tensor:
        return score / (ratio + 2 * weight)

    def value(
        self,
        family: Family,
        anchor: State,
        candidate: State,
        weights: tuple[float, float],
        draws: Sequence[Tensor],
        total: Total,
    ) -> Tensor:
        """2 kappa_Lambda KL_precision + 2 kappa_m KL_mean of KL(anchor || candidate).

        Without a closed form, -2 kappa_Lambda log q(theta) averaged over the two draws: the precision's weight then holds
        the means, too.
        """
        precision, mean = weights
        parts = family.kl(anchor, candidate, total)
        if parts is not None:
            return 2 * precision * parts[0] + 2 * mean * parts[1]
        density = [family.log_prob(candidate, draw, total) for draw in draws]
        return -precision * (density[0] + density[1])
