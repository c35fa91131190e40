"""From a module on the meta device to initial weights, shard by shard: no process ever holds the whole.

A module's own ``reset_parameters`` and ``init_weights`` run on the shards as they are. What they draw at random comes in
blocks keyed by seed, call and global index (:mod:`proxscore.inference.noise`), so that the weights do not depend on how
they are sharded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from proxscore.config import ConfigError
from proxscore.inference import noise
from proxscore.inference.names import named_buffers, named_parameters


@torch.no_grad()
def materialize(module: nn.Module, device: torch.device, seed: int) -> None:
    """Give a module on the meta device, sharded or not, memory and initial weights.

    Raises:
        ConfigError: neither ``reset_parameters`` nor ``init_weights`` set a parameter or buffer, or one of them does what
            cannot be done shard by shard; names it.
    """
    module.to_empty(device=device)
    tensors: dict[str, Tensor] = {**named_parameters(module), **named_buffers(module)}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            noise.local(tensor).fill_(math.nan)
    with _Keyed(seed):
        for member in module.modules():
            for method in ("reset_parameters", "init_non_persistent_buffers"):
                _call(member, method)
        _call(module, "init_weights")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not noise.local(tensor).isfinite().all():
            raise ConfigError(
                f"training.meta_init: nothing sets {name}, whose module has no reset_parameters: use "
                "training.meta_init=false"
            )


def _call(module: nn.Module, method: str) -> None:
    function = getattr(module, method, None)
    if function is None:
        return
    try:
        function()
    except (NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"training.meta_init: {type(module).__name__}.{method} cannot run on shards ({reason}): use "
            "training.meta_init=false"
        ) from error


class _Keyed(TorchDispatchMode):
    """Within the context, ``normal_`` and ``uniform_`` fill shards with numbers keyed by seed, call and global index."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed, self._calls = seed, 0
        self._streams: dict[tuple[torch.device, torch.dtype], noise.NormalStream] = {}

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is torch.ops.aten.normal_.default:
            return self._normal(*arguments, **(named or {}))
        if function is torch.ops.aten.uniform_.default:
            return self._uniform(*arguments, **(named or {}))
        return function(*arguments, **(named or {}))

    def _normal(self, tensor: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: object = None) -> Tensor:
        for piece, values in self._pieces(tensor):
            piece.copy_(values).mul_(std).add_(mean)
        return tensor

    def _uniform(self, tensor: Tensor, low: float = 0.0, high: float = 1.0, *, generator: object = None) -> Tensor:
        for piece, values in self._pieces(tensor):
            ends = torch.tensor([low, high], dtype=piece.dtype)
            inner = torch.nextafter(ends, ends.flip(0))  # an end itself is infinity where a quantile is taken of it
            piece.copy_(torch.special.ndtr(values)).mul_(high - low).add_(low).clamp_(*inner.tolist())
        return tensor

    def _pieces(self, tensor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(piece of the local shard, its standard normal numbers)."""
        shard, start = noise.local(tensor), noise.shard_offset(tensor)
        place = shard.device, shard.dtype
        if place not in self._streams:
            self._streams[place] = noise.NormalStream(*place)
        self._calls += 1
        key = noise.key(self._seed, "initial weights", self._calls)
        for part, values in self._streams[place].pieces(key, start, shard.numel()):
            yield shard[part], values
