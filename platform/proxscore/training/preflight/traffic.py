"""What the workers of a job send one another in a step, from the sizes of the network's parts: messages and bytes, exactly.

FSDP2 gathers every block for the forward and again for the backward pass of a micro-batch, and what lies outside of blocks
once; gradients are scattered after the last micro-batch. Every tensor is padded to as many rows as its shards have together.
Replicas sum their shards of the gradients, draw groups their scores and curvatures; the loss of all takes one message more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from proxscore.config import Config, MethodSection
from proxscore.inference.groups import MESSAGE_SIZE
from proxscore.training.sharding import meshes
from proxscore.training.sharding.parallelize import units

GROUP_NUMBERS = 2  # a score and a curvature of each parameter
LOSS_BYTES = 16.0  # the loss, whether a gradient is not finite, whether a report is due, and rows, in float32


@dataclass(frozen=True)
class Part:
    """What FSDP2 gathers and scatters together: a block, or what lies outside of blocks.

    Attributes:
        name: of the block; empty: the root.
        numbers, trained: of its tensors, padded.
    """

    name: str
    numbers: int
    trained: int


@dataclass(frozen=True)
class Traffic:
    """What one worker takes part in during a step.

    Attributes:
        groups, replicas, shards: how the workers are arranged.
        parts: in the order of the forward pass, the root first.
        passes: gradient evaluations of a worker.
        micro_batches: of each of them.
        wide: bytes of a gathered number; gradients and all else have four.
        sums: bytes of the messages that draw groups sum.
    """

    groups: int = 1
    replicas: int = 1
    shards: int = 1
    parts: tuple[Part, ...] = ()
    passes: int = 1
    micro_batches: int = 1
    wide: int = 4
    sums: tuple[float, ...] = ()

    @property
    def workers(self) -> int:
        return self.groups * self.replicas * self.shards

    def gathered_by(self, part: Part) -> float:
        """Bytes that an all-gather of a part ends with; none without shards."""
        return float(self.wide * part.numbers) if self.shards > 1 else 0.0

    def scattered_by(self, part: Part) -> float:
        """Bytes that a reduce-scatter of a part's gradients begins with; none without shards."""
        return 4.0 * part.trained if self.shards > 1 else 0.0

    def reduced_by(self, part: Part) -> float:
        """Bytes of a part's gradients that an all-reduce sums over replicas."""
        return 4.0 * part.trained / self.shards if self.replicas > 1 else 0.0

    @property
    def gathered(self) -> float:
        """Bytes of whole parameters that all-gathers end with."""
        each = sum(self.gathered_by(part) * (2 if part.name else 1) for part in self.parts)
        return self.passes * self.micro_batches * each

    @property
    def scattered(self) -> float:
        """Bytes of whole gradients that reduce-scatters begin with."""
        return self.passes * sum(map(self.scattered_by, self.parts))

    @property
    def reduced(self) -> float:
        """Bytes that all-reduces sum over replicas and draw groups, and over all workers for the loss."""
        return self.passes * sum(map(self.reduced_by, self.parts)) + sum(self.sums) + LOSS_BYTES * (self.workers > 1)

    @property
    def messages(self) -> int:
        """Collectives, with that of the loss."""
        gathers = sum((2 if part.name else 1) for part in self.parts if self.gathered_by(part))
        scatters = sum(bool(self.scattered_by(part)) + bool(self.reduced_by(part)) for part in self.parts)
        return self.passes * (self.micro_batches * gathers + scatters) + len(self.sums) + (self.workers > 1)

    @property
    def received(self) -> float:
        """Bytes that this worker receives: a ring's share of what is gathered and scattered, and twice that of what is summed."""
        replicated = self.passes * sum(map(self.reduced_by, self.parts))
        found = (self.gathered + self.scattered) * (1 - 1 / self.shards)
        found += 2 * replicated * (1 - 1 / self.replicas) + 2 * sum(self.sums) * (1 - 1 / self.groups)
        return found + 2 * LOSS_BYTES * (1 - 1 / self.workers)


def traffic(config: Config, method: MethodSection, module: nn.Module) -> Traffic:
    """Count a step's traffic of a network, whose numbers need not be there.

    Raises:
        ConfigError: the workers cannot be arranged like that.
    """
    training = config.training
    wide = 2 if training.precision == "bf16" else 4
    arranged = meshes.arrangement(config, method)
    return traffic_of(module, arranged, method.member.evaluations_per_step(), training.accumulate, wide)


def traffic_of(
    module: nn.Module, arranged: tuple[int, int, int], evaluations: int, micro_batches: int = 1, wide: int = 2
) -> Traffic:
    """Count a step's traffic of a network.

    Args:
        arranged: draw groups, replicas and shards.
        evaluations: of the gradient in a step, over all draw groups.
        wide: bytes of a number that is gathered.
    """
    groups, replicas, shards = arranged
    sums: tuple[float, ...] = ()
    if groups > 1:
        local = [_padded(p, shards) // shards for p in module.parameters() if p.requires_grad]
        sums = tuple(_messages(GROUP_NUMBERS * local))
    return Traffic(groups, replicas, shards, parts_of(module, shards), evaluations // groups, micro_batches, wide, sums)


def parts_of(module: nn.Module, shards: int = 1) -> tuple[Part, ...]:
    """What FSDP2 sends together, the root first; a tensor that two parts share belongs to the first of them."""
    found = list(units(module).items())
    inside = {id(p) for _, block in found for p in block.parameters()}
    root = [p for p in module.parameters() if id(p) not in inside]
    listed = [("", root), *((name, list(block.parameters())) for name, block in found)]
    return tuple(_part(name, tensors, shards) for name, tensors in listed if tensors)


def _part(name: str, tensors: Iterable[Tensor], shards: int) -> Part:
    sizes = [(_padded(tensor, shards), tensor.requires_grad) for tensor in tensors]
    return Part(name, sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def _padded(tensor: Tensor, shards: int) -> int:
    """Numbers of a tensor with as many rows as all shards have together."""
    rows = tensor.shape[0] if tensor.ndim else 1
    return math.ceil(rows / shards) * shards * (tensor.numel() // max(rows, 1))


def _messages(sizes: Sequence[int]) -> list[float]:
    """Bytes of the messages that tensors are summed in, as :func:`proxscore.inference.groups.all_reduce_together` does."""
    found: list[float] = []
    for size in sizes:
        if found and found[-1] + size <= MESSAGE_SIZE:
            found[-1] += size
        else:
            found.append(size)
    return [4.0 * size for size in found]
