"""Sums of terms per step ahead and per series, in float64, that add up over batches of windows and over ranks.

Every forecast metric is a ratio of two of them: of its own terms, and of what it is a mean over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

_MEANS_OVER = {
    "mean_weighted_quantile_loss": "absolute_target",
    "mase": "scaled_steps",
    "msis": "scaled_steps",
    "nll": "nll_steps",
    "aleatoric_sd": "aleatoric_steps",
    "epistemic_sd": "epistemic_steps",
}
_ROOTS = ("aleatoric_sd", "epistemic_sd")
DENOMINATORS = ("steps", *dict.fromkeys(_MEANS_OVER.values()))


def denominator(metric: str) -> str:
    """The name of the sum that a metric is a mean over: observed steps, if it has no other."""
    return _MEANS_OVER.get(metric, "steps")


def ratios(names: Sequence[str], sums: Tensor) -> dict[str, Tensor]:
    """(K,) per metric, from the sums (names, K) of metrics and denominators; NaN where the denominator is zero."""
    rows = dict(zip(names, sums, strict=True))
    result = {}
    for name in names:
        if name not in DENOMINATORS:
            below = rows[denominator(name)]
            ratio = torch.where(below > 0, rows[name] / below, torch.nan)
            result[name] = ratio.sqrt() if name in _ROOTS else ratio
    return result


@dataclass
class ForecastSums:
    """The sums over all windows from which the metrics follow.

    Attributes:
        by_horizon: (names, H), each named term summed over windows.
        by_series: (names, N), each summed over windows of a series and steps.
        pit: (bins,), counts of PIT values.
    """

    by_horizon: Tensor
    by_series: Tensor
    pit: Tensor

    @classmethod
    def zeros(cls, names: int, horizon: int, series: int, bins: int, device: torch.device) -> Self:
        shapes = ((names, horizon), (names, series), (bins,))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def to(self, device: torch.device) -> Self:
        return type(self)(self.by_horizon.to(device), self.by_series.to(device), self.pit.to(device))

    def add(self, terms: Tensor, series: Tensor) -> None:
        """Add terms (names, B, H) of windows of series (B,), from any device."""
        self.by_horizon += terms.sum(dim=1).to(self.by_horizon)
        self.by_series.index_add_(1, series.to(self.by_series.device), terms.sum(dim=2).to(self.by_series))

    def reduced(self) -> Self:
        """The sums over all ranks of the default group, in one reduction; these stay as they are. A collective."""
        parts = (self.by_horizon, self.by_series, self.pit)
        flat = torch.cat([part.flatten() for part in parts])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flat)
        pieces = flat.split([part.numel() for part in parts])
        return type(self)(*(piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)))
