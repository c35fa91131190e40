"""Steps on numbers that are the same in every call."""

from __future__ import annotations

import torch
from torch import nn

from proxscore.inference import Categorical, ProximalScore


def stepped(module: nn.Module, optimizer: ProximalScore, steps: int) -> None:
    """Take so many steps on 12 rows of 4 numbers, of 3 classes."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
        for _ in optimizer.draws():
            Categorical().nll(module(x), y).mean().backward()
        optimizer.step()
