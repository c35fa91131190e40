"""A positive number from one of any sign, which it equals where that is large."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ZERO = 0.1  # of the width, where the number is 0
_LEAST = 1e-30  # of a width


def positive(values: Tensor, width: Tensor) -> Tensor:
    """(x + sqrt(x^2 + 4 c^2 w^2)) / 2 with c = 0.1: x + c^2 w^2 / x for x far above w, c^2 w^2 / |x| far below 0.

    Its gradient falls off as a power of x below 0, not exponentially as that of softplus, and it leaves x nearly as it is
    from half a width on (Barron, 2021, Squareplus, arXiv 2112.11687).

    Args:
        values: x.
        width: w > 0, the size of x that counts as near 0.
    """
    half = _AT_ZERO * width.clamp_min(_LEAST)
    root = torch.hypot(values, 2 * half)
    below = 2 * half.square() / (root + values.abs())  # x < 0 without cancellation
    return torch.where(values < 0, below, (values.abs() + root) / 2)
