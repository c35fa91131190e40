"""Sums over processes: over draw groups, which score different draws of one step, and over the shards of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from proxscore.inference import noise

#: How many numbers one all-reduce sends at most; two temporaries of that size live at once.
MESSAGE_SIZE = 1 << 24


class DrawGroups:
    """Processes that hold the same parameters, or shards of them, and share out the draws of each step.

    Args:
        mesh: one-dimensional, over the groups; none: one group.
        draws: how many draws, or pairs, a step has over all groups.

    Raises:
        ValueError: the draws cannot be shared out evenly.
    """

    def __init__(self, mesh: DeviceMesh | None, draws: int) -> None:
        self.mesh, self.count = mesh, 1 if mesh is None else mesh.size()
        if draws % self.count:
            raise ValueError(f"draws is {draws}; it must be a multiple of the number of draw groups, {self.count}")
        #: Indices of the draws that this process scores.
        self.own = range(0 if mesh is None else mesh.get_local_rank(), draws, self.count)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over the groups, in place."""
        if self.mesh is not None:
            all_reduce_together(tensors, self.mesh.get_group())


def all_agree(here: bool, meshes: Iterable[DeviceMesh], device: torch.device) -> bool:
    """Whether something is true on every process of some meshes, in each of which every process calls it."""
    groups = [mesh.get_group(dimension) for mesh in meshes for dimension in range(mesh.ndim)]
    if not groups:
        return here
    found = torch.tensor(float(here), device=device)
    for group in groups:
        dist.all_reduce(found, op=dist.ReduceOp.MIN, group=group)
    return bool(found)


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
    """Lists of consecutive tensors of one type and device, each as long as one message may be."""
    for _, alike in groupby(tensors, key=lambda tensor: (tensor.dtype, tensor.device)):
        chunk: list[Tensor] = []
        for tensor in alike:
            if chunk and sum(held.numel() for held in chunk) + tensor.numel() > MESSAGE_SIZE:
                yield chunk
                chunk = []
            chunk.append(tensor)
        if chunk:
            yield chunk


def shard_count(tensor: DTensor) -> int:
    """How many ranks a tensor is cut over."""
    sizes = [
        tensor.device_mesh.size(d) for d, placement in enumerate(tensor.placements) if isinstance(placement, Shard)
    ]
    return max(sizes, default=1)


def shard_group(tensor: DTensor) -> Any:
    """The process group of the ranks that hold a tensor's shards."""
    (dimension,) = (d for d, placement in enumerate(tensor.placements) if isinstance(placement, Shard))
    return tensor.device_mesh.get_group(dimension)


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all numbers of some tensors together, on every rank; those of shards count once, wherever they lie."""
    squares: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        sharded = isinstance(tensor, DTensor) and shard_count(tensor) > 1
        squares.setdefault(shard_group(tensor) if sharded else None, []).append(noise.local(tensor))  # type: ignore[arg-type]
    totals = []
    for group, pieces in squares.items():
        total = torch.stack(torch._foreach_norm(pieces, 2)).square().sum()
        if group is not None:
            dist.all_reduce(total, group=group)
        totals.append(total)
    return torch.stack(totals).sum().sqrt()
