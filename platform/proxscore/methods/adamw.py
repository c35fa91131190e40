"""AdamW: the point estimate that everything else is compared with (Loshchilov and Hutter, arXiv 1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from proxscore.config import AdamWConfig
from proxscore.methods.steps import Factor, Steps, cosine

if TYPE_CHECKING:
    from proxscore.methods import Horizon


class AdamW(Steps, torch.optim.AdamW):
    """torch's AdamW with the loop's interface: one "draw" per step (the weights as they are), schedule, skipped steps.

    Args:
        named: (name, parameter) pairs.
        factor: on the learning rate, of a step.
        max_skipped_steps: that many steps in a row with gradients that are not finite raise FloatingPointError.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        lr: float,
        weight_decay: float,
        factor: Factor,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__(named, lr=lr, weight_decay=weight_decay)
        self.prepare(factor, max_skipped_steps)


def build(
    config: AdamWConfig,
    module: nn.Module,
    horizon: Horizon,
    seed: int = 0,
    losses: object = None,
    draw_mesh: object = None,
) -> AdamW:
    """AdamW with warm-up and cosine decay to zero over the run."""
    factor = cosine(config.warmup, horizon.total_steps)
    return AdamW(module.named_parameters(), config.lr, config.weight_decay, factor, config.max_skipped_steps)
