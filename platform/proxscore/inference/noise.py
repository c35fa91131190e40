"""Standard normal noise that does not depend on how parameters are sharded.

It is counter-based: number i of a parameter's flattened *global* index is a function of i and of a 64-bit key, a hash of
(seed, iteration, draw, parameter). Philox4x32-10 turns key and counter i // 4 into four 32-bit words, and Box and Muller's
formula turns these into four normal numbers:

    z_0, z_1 = sqrt(-2 log u_0) (cos, sin)(2 pi u_1),      z_2, z_3 from the words 2 and 3 alike.

So there is no state of a generator: a rank that holds a shard draws the numbers of its shard, a sharded run has exactly the
noise of an unsharded one, replicas of a shard agree without communication, a checkpoint needs the seed and the iteration
only, and a CPU has the numbers of a GPU but for the rounding of logarithm and cosine. The numbers are those of
``torch.func._random.normal_``; :mod:`proxscore.inference.elementwise` has the same ones as arithmetic that a compiler can
fuse into what they are drawn for. Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.func import _random

_MASK = (1 << 64) - 1

# Numbers at a time. Few on the CPU, so that they stay in the cache; many where each time is the launch of a kernel.
PIECE = {"cpu": 1 << 14}
PIECE_ACCELERATOR = 1 << 22


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
    """Standard normal noise for one device and type of numbers, in a buffer that is used again."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._place = device, dtype
        self.piece = PIECE.get(device.type, PIECE_ACCELERATOR)
        self._unit = 4 if dtype == torch.float32 else 2  # numbers from one counter
        self._meta = device.type == "meta"  # tensors without numbers: only sizes are asked for
        self._buffer = torch.empty(0, device=device, dtype=dtype)

    def __reduce__(self) -> tuple[type[NormalStream], tuple[torch.device, torch.dtype]]:
        return NormalStream, self._place

    def pieces(self, seed: int, start: int, count: int) -> Iterator[tuple[slice, Tensor]]:
        """Noise for the elements [start, start + count) of a parameter.

        Yields (slice into the local shard, noise for it), piece by piece; the noise is valid until the next one.
        """
        if self._meta:
            return
        if len(self._buffer) < min(self.piece, count + self._unit):
            self._buffer = self._buffer.new_empty(min(self.piece, max(count + self._unit, 1 << 10)))
        low, end = start, start + count
        while low < end:
            counter = low // self._unit
            first = counter * self._unit
            high = min(end, first + len(self._buffer) // self._unit * self._unit)
            key_ = torch.tensor([seed, counter], dtype=torch.uint64, device="cpu").to(self._place[0], non_blocking=True)
            values = _random.normal_(key_, self._buffer[: high - first])
            yield slice(low - start, high - start), values[low - first :]
            low = high


class Streams:
    """Standard normal noise for tensors of any device and type: a :class:`NormalStream` for each, made when it is needed."""

    def __init__(self) -> None:
        self._streams: dict[tuple[torch.device, torch.dtype], NormalStream] = {}

    def pieces(self, like: Tensor, seed: int, start: int) -> Iterator[tuple[slice, Tensor]]:
        """Noise for a flat shard ``like`` that begins at ``start``, as :meth:`NormalStream.pieces` yields it."""
        kind = like.device, like.dtype
        if kind not in self._streams:
            self._streams[kind] = NormalStream(*kind)
        return self._streams[kind].pieces(seed, start, len(like))
