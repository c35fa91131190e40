"""What the loop asks of any optimizer, once: one pass over the weights as they are, a schedule, skipped steps, noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from proxscore.inference import Schedule, noise
from proxscore.methods.method import Method

Factor = Callable[[int], float]


class Steps(Method):
    """A method whose steps have a schedule; inherit from it before a torch optimizer, and call :meth:`prepare`.

    The learning rate of a group is its peak times a factor of the step. Steps whose
    gradients are not finite are skipped, and ``max_skipped_steps`` of them in a row raise FloatingPointError.
    """

    def prepare(self, factor: Factor, max_skipped_steps: int = 10) -> None:
        """Start counting; ``factor`` maps a step (from zero) to a factor on the learning rate."""
        self.factor, self.max_skipped_steps = factor, max_skipped_steps
        self.statistics = {}
        for group in self.param_groups:
            group.update(peak_lr=group["lr"], iteration=0, skipped=0, skipped_in_a_row=0)

    def advance(self) -> bool:
        """Count a step and set its learning rate; whether it is to be taken.

        Raises:
            FloatingPointError: too many steps in a row had gradients that are not finite.
        """
        if "peak_lr" not in self.param_groups[0]:
            raise RuntimeError(f"{type(self).__name__} was not prepared: call prepare(factor) when it is built")
        bad, self.found_inf = bool(self.nonfinite if self.found_inf is None else self.found_inf), None
        for group in self.param_groups:
            group["lr"] = group["peak_lr"] * self.factor(group["iteration"])
            group["iteration"] += 1
            group["skipped"] += bad
            group["skipped_in_a_row"] = group["skipped_in_a_row"] + 1 if bad else 0
            if group["skipped_in_a_row"] >= self.max_skipped_steps:
                raise FloatingPointError(
                    f"{self.max_skipped_steps} steps in a row had gradients that are not finite; "
                    "look for bad inputs, or use a smaller lr"
                )
        self.statistics = {"learning_rate": max(group["lr"] for group in self.param_groups)}
        return not bad

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step at the scheduled learning rate, or none if a gradient was not finite."""
        result = self.update() if self.advance() else None
        self.collect()
        return result

    @torch.no_grad()
    def update(self) -> Any:
        """The step itself: that of the torch optimizer, unless a method has its own."""
        return super().step()

    def collect(self) -> None:
        """For a method that keeps weights: what it does at the end of every step, a skipped one, too."""


def cosine(warmup: float, total_steps: int) -> Factor:
    """Linear warm-up over a fraction of the run, then a cosine to zero at its end."""
    return Schedule("cosine", warmup=math.floor(warmup * total_steps)).resolve(total_steps, 1).factor


def standard_normal(parameter: Tensor, *words: int | str) -> Tensor:
    """Standard normal noise for the local shard of a parameter, flat: the same however it is sharded.

    Args:
        words: what the noise is a function of; they must tell parameters apart.
    """
    shard = noise.local(parameter)
    result = torch.empty_like(shard)
    start = noise.shard_offset(parameter) if isinstance(parameter, DTensor) else 0
    stream = noise.NormalStream(shard.device, shard.dtype)
    for piece, values in stream.pieces(noise.key(*words), start, len(shard)):
        result[piece] = values
    return result
