"""A block of parameters as one vector: of this rank's shards, or of the whole.

Over FSDP2 shards, a shardable family's vector is this rank's part, and sums go over the ranks; any other family is
gathered: every rank holds the whole vector and computes the same.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import zeros as distributed_zeros

from proxscore.inference import noise
from proxscore.inference.families import Family, State
from proxscore.inference.families.base import whole
from proxscore.inference.groups import shard_count, shard_group


class Layout:
    """How the tensors of a block are flattened into one vector, and written back from it.

    Args:
        family: family that describes the block.
        members: (name, parameter, index of its local shard's first element).
    """

    def __init__(self, family: Family, members: Iterable[tuple[str, Tensor, int]]) -> None:
        self.family = family
        self.members = list(members)
        tensors = [tensor for _, tensor, _ in self.members]
        sharded = [t for t in tensors if isinstance(t, DTensor) and shard_count(t) > 1]
        #: Whether the vector holds this rank's shards only.
        self.local = family.shardable and bool(sharded)
        if self.local and len({id(t.device_mesh) for t in sharded if isinstance(t, DTensor)}) > 1:
            raise ValueError(f"family {family.kind}: {self.members[0][0]} and others lie on different device meshes")
        self._group = shard_group(sharded[0]) if self.local else None
        self.sizes = [noise.local(t).numel() if self.local else t.numel() for t in tensors]
        self.shape, self.size = tensors[0].shape, sum(self.sizes)
        self._streams = noise.Streams()

    def total(self, value: Tensor) -> Tensor:
        """The sum over the shards, differentiable."""
        return all_reduce(value, group=self._group) if self.local else whole(value)

    @property
    def ranks(self) -> int:
        """How many ranks share the vector: a loss that each of them holds counts that often in a backward pass."""
        return dist.get_world_size(self._group) if self.local else 1

    def vector(self, tensors: Iterable[Tensor]) -> Tensor:
        """Flatten tensors that are shaped and placed as the parameters; further trailing dimensions stay columns."""
        pieces = []
        for (_, parameter, _), tensor in zip(self.members, tensors, strict=True):
            columns = tensor.shape[parameter.ndim :]
            if isinstance(tensor, DTensor):
                tensor = tensor.to_local() if self.local else tensor.full_tensor()
            pieces.append(tensor.detach().reshape(-1, *columns))
        return torch.cat(pieces)

    @torch.no_grad()
    def put(self, vector: Tensor, tensors: Iterable[Tensor]) -> None:
        """Write a vector into tensors shaped and placed as the parameters."""
        rows = vector.split(self.sizes)
        for (_, parameter, start), tensor, piece in zip(self.members, tensors, rows, strict=True):
            columns = tensor.shape[parameter.ndim :]
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            flat = local.detach().view(-1, *columns)
            flat.copy_(piece if self.local else piece[start : start + len(flat)])

    def gather(self, vector: Tensor) -> Tensor:
        """The whole of a tensor whose first dimension runs over this rank's part of the vector; every rank must call it."""
        if not self.local or vector.ndim == 0:
            return vector
        tensors = [zeros_placed_as(parameter, *parameter.shape, *vector.shape[1:]) for _, parameter, _ in self.members]
        self.put(vector, tensors)
        whole_tensors = [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
        return torch.cat([t.reshape(-1, *vector.shape[1:]) for t in whole_tensors])

    def normal(self, *words: int | str) -> Tensor:
        """Standard normal numbers for the vector, the same however the run is sharded; ``words`` are their seed."""
        tensors = [tensor for _, tensor, _ in self.members]
        result = torch.empty(self.size, device=tensors[0].device, dtype=tensors[0].dtype)
        for (name, _, start), piece in zip(self.members, result.split(self.sizes), strict=True):
            first, seed = start if self.local else 0, noise.key(*words, name)
            for part, values in self._streams.pieces(piece, seed, first):
                piece[part] = values
        return result

    def extra(self, *words: int | str) -> Tensor:
        """The further standard normal numbers that a draw of the family takes, equal on all ranks."""
        name, like, _ = self.members[0]
        result = torch.empty(self.family.extra, device=like.device, dtype=like.dtype)
        for part, values in self._streams.pieces(result, noise.key(*words, "extra", name), 0):
            result[part] = values
        return result

    def draw(self, state: State, sign: float, *words: int | str) -> Tensor:
        """A draw of the family, as a vector; ``words`` are its seed."""
        return self.family.draw(state, self.normal(*words), self.extra(*words), sign)


def filled(values: Iterable[float], sizes: Iterable[int], like: Tensor) -> Tensor:
    """A vector that repeats each value as often as its size says."""
    return torch.cat([like.new_full((size,), value) for value, size in zip(values, sizes, strict=True)])


def zeros_placed_as(parameter: Tensor, *shape: int) -> Tensor:
    """Zeros of a shape whose first dimension is cut over ranks as the parameter's is."""
    if isinstance(parameter, DTensor):
        return distributed_zeros(
            *shape, dtype=parameter.dtype, device_mesh=parameter.device_mesh, placements=parameter.placements
        )
    return parameter.detach().new_zeros(shape)
