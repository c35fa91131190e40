"""What a prediction costs: seconds of forward passes with the draws, against one plain pass over the same images."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from proxscore.posterior.calls import outputs_of
from proxscore.posterior.drawn import Drawn

REPEATS = 3  # of which the fastest counts: what else the machine does only ever slows one down


def seconds_of(found: Drawn, inputs: Tensor) -> float:
    """Seconds that the images (N, C, H, W) take under all draws, their weights put into place among it, on the draws' device;
    after one pass that is not counted."""
    inputs = inputs.to(found.device)
    _pass(found, inputs)
    return min(_pass(found, inputs) for _ in range(REPEATS))


@torch.no_grad()
def _pass(found: Drawn, inputs: Tensor) -> float:
    _wait(found.device)
    start = time.perf_counter()
    for position in range(len(found)):
        with found.use(position) as module:
            outputs_of(module, inputs)
    _wait(found.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
