"""The quadratic penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proxscore.inference.families.base import Family, State, Total
from proxscore.inference.penalties.base import Penalty, Tensors


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

    def value(
        self,
        family: Family,
        anchor: State,
        candidate: State,
        weights: tuple[float, float],
        draws: Sequence[Tensor],
        total: Total,
    ) -> Tensor:
        """kappa_Lambda / 2 E || x ||^2 + kappa_m E || y ||^2, with x half the difference and y the average of s - s_t at draws.

        The two draws are mirror images: x is (R - I) eps, and y is d.
        """
        precision, mean = weights
        with torch.no_grad():
            before = [family.score(anchor, draw, total).detach() for draw in draws]
        one, two = (family.score(candidate, draw, total) - score for draw, score in zip(draws, before, strict=True))
        curvature = family.norm(anchor, (one - two) / 2, total)
        return precision / 2 * curvature + mean * family.norm(anchor, (one + two) / 2, total)
