"""Tensors on their way to a disk: whole, contiguous, and each with a memory of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unsharded copies on the CPU, of the first rank; empty tensors on the others, which must call it, too."""
    keep = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    result = {}
    for name, tensor in tensors.items():  # one at a time: no rank holds the model twice
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        result[name] = full.detach().to("cpu", copy=True) if keep else torch.empty(0)
    return result


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors (or shards), none of which shares its memory with another: what safetensors can hold."""
    result: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        place = local.untyped_storage().data_ptr()
        if place in memory or not local.is_contiguous():
            tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
        result[name] = tensor
        memory.add(place)
    return result
