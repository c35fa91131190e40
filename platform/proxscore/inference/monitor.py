"""Statistics of what a step does to the precisions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Monitor:
    """Running mean and extremes of log-precision and of the precision ratio r over the local shards."""

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[Tensor] = []

    def add(self, precision: list[Tensor], ratio: Iterable[Tensor]) -> None:
        for p, r in zip(precision, ratio, strict=True):
            if p.numel():
                low, high = torch.aminmax(p)
                r_low, r_high = torch.aminmax(r)
                self.rows.append(torch.stack([p.log().sum(), low, high, r.sum(), r_low, r_high]))
                self.count += p.numel()

    def result(self) -> dict[str, float]:
        if not self.rows:
            return {"count": 0}
        rows = torch.stack(self.rows).cpu()  # one wait for the device, not one for each bucket
        log_sum, ratio_sum = rows[:, 0].double().sum() / self.count, rows[:, 3].double().sum() / self.count
        return {
            "count": self.count,
            "log_precision_mean": log_sum.item(),
            "log_precision_min": rows[:, 1].min().log().item(),
            "log_precision_max": rows[:, 2].max().log().item(),
            "ratio_mean": ratio_sum.item(),
            "ratio_min": rows[:, 4].min().item(),
            "ratio_max": rows[:, 5].max().item(),
        }
