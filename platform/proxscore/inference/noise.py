"""Standard normal noise that does not depend on how parameters are sharded.

The noise of a parameter is drawn in fixed blocks of its flattened *global* index, each block from a generator seeded by
a hash of (seed, iteration, draw, parameter, block). A rank that holds a shard generates the blocks that overlap it. So
a sharded run draws exactly the noise of an unsharded one, replicas of a shard agree without communication, and a
checkpoint needs the seed and the iteration only, however many workers resume from it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

_MASK = (1 << 64) - 1

# Elements per block. Small on the CPU, so that a block stays in cache; large where each block is a kernel launch.
BLOCK = {"cpu": 1 << 16}
BLOCK_ACCELERATOR = 1 << 20


def key(*words: int | str) -> int:
    """A 64-bit hash of integers and names (splitmix64 steps)."""
    state = 0
    for word in words:
        value = zlib.crc32(word.encode()) if isinstance(word, str) else word
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def shard_offset(parameter: Tensor, name: str = "parameter") -> int:
    """Index of a local shard's first element in the flattened global parameter.

    Raises:
        ValueError: the shard is no contiguous piece of the flattened parameter (sharded along another dimension than
            the first).
    """
    if not isinstance(parameter, DTensor):
        return 0
    for placement in parameter.placements:
        if type(placement) is Replicate or (type(placement) is Shard and placement.dim == 0):
            continue
        raise ValueError(f"{name} is placed as {placement!r}; only Shard(0) and Replicate() can be sampled")
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return int(offset[0]) * (parameter.shape[1:].numel()) if parameter.ndim else 0


def local(tensor: Tensor) -> Tensor:
    """The local shard of a (possibly distributed) tensor, flat and detached: writing to it writes the tensor."""
    shard = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return shard.detach().view(-1)


class NormalStream:
    """Blocks of standard normal noise for one device; reuses one generator and one buffer."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._place = device, dtype
        self.block = BLOCK.get(device.type, BLOCK_ACCELERATOR)
        self._meta = device.type == "meta"  # tensors without numbers: only sizes are asked for
        self._generator = torch.Generator() if self._meta else torch.Generator(device=device)
        self._buffer = torch.empty(self.block, device=device, dtype=dtype)

    def __reduce__(self) -> tuple[type[NormalStream], tuple[torch.device, torch.dtype]]:
        return NormalStream, self._place  # a copy needs a generator of its own, in no state

    def pieces(self, seed: int, start: int, count: int, total: int) -> Iterator[tuple[slice, Tensor]]:
        """Noise for the elements [start, start + count) of a parameter with ``total`` elements.

        Yields (slice into the local shard, noise for it), block by block; the noise is valid until the next one.
        """
        if self._meta:
            return
        for index in range(start // self.block, -(-(start + count) // self.block) if count else 0):
            first = index * self.block
            # A block is always drawn whole: its content must not depend on who asks for which part of it.
            size = min(self.block, total - first)
            noise = self._buffer[:size].normal_(generator=self._generator.manual_seed(key(seed, index)))
            low, high = max(first, start), min(first + size, start + count)
            yield slice(low - start, high - start), noise if high - low == size else noise[low - first : high - first]


class Streams:
    """Standard normal noise for tensors of any device and type: a :class:`NormalStream` for each, made when it is needed."""

    def __init__(self) -> None:
        self._streams: dict[tuple[torch.device, torch.dtype], NormalStream] = {}

    def pieces(self, like: Tensor, seed: int, start: int, total: int) -> Iterator[tuple[slice, Tensor]]:
        """Noise for a flat shard ``like`` that begins at ``start``, as :meth:`NormalStream.pieces` yields it."""
        kind = like.device, like.dtype
        if kind not in self._streams:
            self._streams[kind] = NormalStream(*kind)
        return self._streams[kind].pieces(seed, start, len(like), total)
