"""AdamW: the point estimate that everything else is compared with (Loshchilov and Hutter, arXiv 1711.05101)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from proxscore.config import AdamWConfig
from proxscore.inference import Schedule, noise

if TYPE_CHECKING:
    from proxscore.methods import Horizon


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the loop's interface: one "draw" per step (the weights as they are), schedule, skipped steps.

    Args:
        named: (name, parameter) pairs.
        schedule: factor on the learning rate over steps.
        max_skipped_steps: that many steps in a row with gradients that are not finite raise FloatingPointError.
    """

    evaluations_per_step = 1

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        lr: float,
        weight_decay: float,
        schedule: Schedule,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__(named, lr=lr, weight_decay=weight_decay)
        self.schedule, self.max_skipped_steps = schedule, max_skipped_steps
        self.found_inf: Tensor | bool | None = None
        self.monitor = False
        self.statistics: dict[str, float] = {}
        for group in self.param_groups:
            group.update(peak_lr=lr, iteration=0, skipped=0, skipped_in_a_row=0)

    def draws(self) -> Iterator[int]:
        """One pass of the loop's body, with cleared gradients."""
        self.zero_grad()
        yield 0

    @property
    def nonfinite(self) -> Tensor:
        """Whether a gradient of this rank is not finite (0 or 1, on the device)."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = torch._foreach_norm([noise.local(p.grad) for p in parameters], 1)
        return 1.0 - torch.stack(norms).isfinite().all().float()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One AdamW step at the scheduled learning rate, or none if a gradient was not finite."""
        bad, self.found_inf = bool(self.nonfinite if self.found_inf is None else self.found_inf), None
        for group in self.param_groups:
            group["lr"] = group["peak_lr"] * self.schedule.factor(group["iteration"])
            group["iteration"] += 1
            group["skipped"] += bad
            group["skipped_in_a_row"] = group["skipped_in_a_row"] + 1 if bad else 0
            if group["skipped_in_a_row"] >= self.max_skipped_steps:
                raise FloatingPointError(
                    f"{self.max_skipped_steps} steps in a row had gradients that are not finite; "
                    "look for bad inputs, or use a smaller lr"
                )
        self.statistics = {"learning_rate": self.param_groups[0]["lr"]}
        return None if bad else super().step(closure)


def build(
    config: AdamWConfig,
    module: nn.Module,
    horizon: Horizon,
    seed: int = 0,
    losses: object = None,
    draw_mesh: object = None,
) -> AdamW:
    """AdamW with warm-up and cosine decay to zero over the run."""
    warmup = math.floor(config.warmup * horizon.total_steps)
    schedule = Schedule("cosine", warmup=warmup).resolve(horizon.total_steps, horizon.steps_per_epoch)
    return AdamW(module.named_parameters(), config.lr, config.weight_decay, schedule, config.max_skipped_steps)
