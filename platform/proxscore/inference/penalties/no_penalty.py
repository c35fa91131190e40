"""The absence of a penalty: score matching alone."""

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
