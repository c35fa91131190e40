"""The quadratic penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proxscore.inference.families.base import Family, State, Total
from proxscore.inference.penalties.base import Penalty, Weight, is_infinite


@dataclass(frozen=True)
class Quadratic(Penalty):
    """Quadratic penalty, the forward one to second order about the anchor:

        P(r, d) = precision * (r - 1)^2 / 2  +  mean * d^2        per coordinate.

    r = (k + kappa) / (1 + kappa), which is not positive for every k: it needs a trust region of the precision. The mean
    moves by u / (r (1 + 2 * mean)) standard deviations.
    """

    positive: ClassVar[bool] = False

    def _solution(self, curvature: Tensor, weight: Weight) -> Tensor:
        return (curvature + weight) / (1 + weight)

    def mean_step(self, score: Tensor, ratio: Tensor, weight: Weight) -> Tensor:
        return torch.zeros_like(score) if is_infinite(weight) else score / (ratio * (1 + 2 * weight))

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
