"""The absence of a penalty: score matching alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proxscore.inference.families.base import Family, State, Total
from proxscore.inference.penalties.base import Penalty, Weight, is_infinite


@dataclass(frozen=True)
class NoPenalty(Penalty):
    """No penalty: score matching alone, for the ablation. r = k (it needs a trust region), and the mean moves by u / r.

    The weights are read in one case only: where a schedule is at zero, that part of the iterate stays where it is.
    """

    positive: ClassVar[bool] = False

    def _solution(self, curvature: Tensor, weight: Weight) -> Tensor:
        return curvature

    def mean_step(self, score: Tensor, ratio: Tensor, weight: Weight) -> Tensor:
        return torch.zeros_like(score) if is_infinite(weight) else score / ratio

    def value(
        self,
        family: Family,
        anchor: State,
        candidate: State,
        weights: tuple[float, float],
        draws: Sequence[Tensor],
        total: Total,
    ) -> Tensor | None:
        """None."""
        return None
