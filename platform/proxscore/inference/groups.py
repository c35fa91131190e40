"""Sums over draw groups: processes that scored different draws of one step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

_LARGEST = 1 << 24  # numbers that one all-reduce sends: two temporaries of that size live at once


def all_reduce_together(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Sum tensors over a group's processes, in place and in as few messages as a bounded buffer allows.

    Args:
        tensors: contiguous; the same shapes, types and order on every process.
    """
    for chunk in _chunks(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in chunk]) if len(chunk) > 1 else chunk[0]
        dist.all_reduce(flat, group=group)
        if len(chunk) > 1:
            pieces = flat.split([tensor.numel() for tensor in chunk])
            torch._foreach_copy_(chunk, [piece.view_as(tensor) for piece, tensor in zip(pieces, chunk, strict=True)])


def _chunks(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one type and place, as many as one message takes."""
    for _, alike in groupby(tensors, key=lambda tensor: (tensor.dtype, tensor.device)):
        chunk: list[Tensor] = []
        for tensor in alike:
            if chunk and sum(held.numel() for held in chunk) + tensor.numel() > _LARGEST:
                yield chunk
                chunk = []
            chunk.append(tensor)
        if chunk:
            yield chunk
