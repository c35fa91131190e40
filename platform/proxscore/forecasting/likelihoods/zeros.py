"""How probable a 0 beside the family's own is."""

from __future__ import annotations

import torch
from torch import Tensor

_START = -2.0  # logit
_LEAST, _MOST = 1e-4, 0.999


def probability_of_zero(raw: list[Tensor]) -> list[Tensor]:
    """Between 0.0001 and 0.999, so that neither a 0 nor another value is impossible; from unconstrained numbers, 0.12 from 0."""
    return [_LEAST + (_MOST - _LEAST) * torch.sigmoid(part + _START) for part in raw]
