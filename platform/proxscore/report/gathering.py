"""What several processes have found of their rows, put together. Without other processes everything stays as it is."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether this process is one of several of a process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(values: Tensor, device: torch.device) -> Tensor:
    """The sum over all processes, on the CPU. All call it."""
    if not several():
        return values
    moved = values.to(device)
    dist.all_reduce(moved)
    return moved.cpu()


def gathered(rows: Tensor, device: torch.device) -> Tensor:
    """The rows (n, ...) of all processes, on the CPU, in the order of their ranks; n may differ. All call it."""
    if not several():
        return rows
    from torchmetrics.utilities.distributed import gather_all_tensors

    return torch.cat([part.cpu() for part in gather_all_tensors(rows.to(device))])
