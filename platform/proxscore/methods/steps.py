"""What the loop asks of any optimizer, once: one pass over the weights as they are, a schedule, skipped steps, noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from proxscore.inference import Schedule, noise
from proxscore.inference.undecided import Undecided
from proxscore.methods.method import Method

Factor = Callable[[int], float]


class Steps(Method):
    """A method whose steps have a schedule; inherit from it before a torch optimizer, and call :meth:`prepare`.

    The learning rate of a group is its peak times a factor of the step. Steps whose
    gradients are not finite are skipped, and ``max_skipped_steps`` of them in a row raise FloatingPointError. Torch's fused
    optimizers skip a step on the device, and the host learns of it when it takes the next one
    (:mod:`proxscore.inference.undecided`).
    """

    _undecided: Undecided | None = None

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
        self.settle()
        found, self.found_inf = self.nonfinite if self.found_inf is None else self.found_inf, None
        if isinstance(found, Tensor) and all(group.get("fused") for group in self.param_groups):
            self._undecided = Undecided(found, self.param_groups)
            self.found_inf = found.reshape(()).float()  # the fused kernel looks at it
            bad = False
        else:
            bad = bool(found)
        for group in self.param_groups:
            group["lr"] = group["peak_lr"] * self.factor(group["iteration"])
            group["iteration"] += 1
        self._count(bad)
        self.statistics = {"learning_rate": max(group["lr"] for group in self.param_groups)}
        return not bad

    def _count(self, bad: bool) -> None:
        for group in self.param_groups:
            group["skipped"] += bad
            group["skipped_in_a_row"] = group["skipped_in_a_row"] + 1 if bad else 0
            if group["skipped_in_a_row"] >= self.max_skipped_steps:
                raise FloatingPointError(
                    f"{self.max_skipped_steps} steps in a row had gradients that are not finite; "
                    "look for bad inputs, or use a smaller lr"
                )

    @property
    def undecided(self) -> bool:
        """Whether the host does not know yet if the last step was skipped."""
        return self._undecided is not None

    def settle(self) -> None:
        """Learn whether the last step was skipped, where the device alone knows, and count it.

        Raises:
            FloatingPointError: too many steps in a row had gradients that are not finite.
        """
        undecided, self._undecided = self._undecided, None
        if undecided is not None and undecided.skipped():
            undecided.take_back(self.param_groups)
            self._count(True)

    def state_dict(self) -> dict[str, Any]:
        """As of any torch optimizer."""
        self.settle()
        return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy.deepcopy`` and pickle."""
        self.settle()
        found: dict[str, Any] = super().__getstate__()
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any torch optimizer."""
        self._undecided = None
        super().load_state_dict(state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step at the scheduled learning rate, or none if a gradient was not finite."""
        result = self.update() if self.advance() else None
        self.found_inf = None
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
