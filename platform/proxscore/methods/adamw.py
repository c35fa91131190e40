"""AdamW: the point estimate that everything else is compared with (Loshchilov and Hutter, arXiv 1711.05101).

On a GPU it is torch's fused kernel, which is its fastest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from proxscore.methods.method import Setup
from proxscore.methods.rates import LayerwiseRates
from proxscore.methods.steps import Factor, Steps, cosine


class AdamWConfig(LayerwiseRates):
    """Point estimate by AdamW, cosine learning rate with warm-up."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)  # learning rate after the warm-up
    weight_decay: float = Field(0.01, ge=0)  # decoupled: a step takes off lr times this fraction of the weights
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    # Steps in a row with gradients that are not finite, after which the run ends as diverged.
    max_skipped_steps: int = Field(10, ge=1)

    fixed_weights: ClassVar[bool] = True

    def build(self, setup: Setup) -> AdamW:
        """AdamW with warm-up and cosine decay to zero over the run."""
        factor = cosine(self.warmup, setup.run.total_steps)
        return AdamW(self.rated(setup.module, self.lr), self.lr, self.weight_decay, factor, self.max_skipped_steps)


class AdamW(Steps, torch.optim.AdamW):
    """torch's AdamW with the loop's interface: one "draw" per step (the weights as they are), schedule, skipped steps.

    Args:
        named: (name, parameter) pairs.
        factor: on the learning rate, of a step.
        max_skipped_steps: that many steps in a row with gradients that are not finite raise FloatingPointError.
    """

    def __init__(
        self,
        named: Iterable[Any],
        lr: float,
        weight_decay: float,
        factor: Factor,
        max_skipped_steps: int = 10,
    ) -> None:
        named = list(named)
        tensors = [t for item in named for t in (item["params"] if isinstance(item, dict) else [item])]
        on_gpu = all((t[1] if isinstance(t, tuple) else t).is_cuda for t in tensors)
        super().__init__(named, lr=lr, weight_decay=weight_decay, fused=on_gpu or None)
        self.prepare(factor, max_skipped_steps)
