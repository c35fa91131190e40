"""How long a step takes: computing, the update's memory traffic, and what of the communication nothing hides, block by block.

FSDP2 gathers the next block while one computes, and scatters a block's gradients while the one before it computes. What is
left over, max(0, communication - computing), is waited for:

    forward    root, then the first block: waited for; block i + 1 while block i computes
    backward   the last block while the root computes; block i - 1, and the gradients of block i + 1, while block i computes
    at the end the gradients of the first block and of the root
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxscore.training.preflight.hardware import Fabric
from proxscore.training.preflight.traffic import LOSS_BYTES, Part, Traffic

FORWARD = 1 / 3  # of a forward and backward pass
FORWARD_CHECKPOINTED = 1 / 4  # where the backward pass runs it again


@dataclass(frozen=True)
class StepTime:
    """The seconds of a step.

    Attributes:
        computing: of forward and backward passes.
        update: of the optimizer.
        sent: all communication.
        waited: that of it which nothing hides.
    """

    computing: float
    update: float
    sent: float
    waited: float

    @property
    def seconds(self) -> float:
        return self.computing + self.update + self.waited


@dataclass(frozen=True)
class Communication:
    """The seconds of each message of a worker, by part of the network, and of those that belong to none.

    Attributes:
        gathers: of an all-gather.
        scatters: of a reduce-scatter, and of the all-reduce over replicas after it.
        sums: of what draw groups sum, and of the loss.
    """

    gathers: tuple[float, ...]
    scatters: tuple[float, ...]
    sums: float

    @classmethod
    def of(cls, traffic: Traffic, fabric: Fabric) -> Communication:
        """The times of a step's messages over a fabric: shards are neighbours, then replicas, draw groups farthest apart."""
        shards, copies = traffic.shards, traffic.shards * traffic.replicas

        def scatter(part: Part) -> float:
            reduced = fabric.reduce(traffic.reduced_by(part), traffic.replicas, shards)
            return fabric.gather(traffic.scattered_by(part), shards) + reduced

        sums = sum(fabric.reduce(size, traffic.groups, copies) for size in traffic.sums)
        return cls(
            tuple(fabric.gather(traffic.gathered_by(part), shards) for part in traffic.parts),
            tuple(scatter(part) for part in traffic.parts),
            sums + fabric.reduce(LOSS_BYTES, traffic.workers),
        )


def step_time(
    traffic: Traffic,
    fabric: Fabric,
    micro_batch: float,
    update: float,
    shares: Mapping[str, float],
    forward: float = FORWARD,
    overlap: bool = True,
) -> StepTime:
    """Seconds of a step.

    Args:
        micro_batch: seconds that forward and backward of one compute.
        update: seconds of the update.
        shares: of that computing, by the name of a part; see :func:`proxscore.training.preflight.speed.shares`.
        forward: the part of it that is the forward pass.
        overlap: whether computing goes on meanwhile; gloo's workers wait.
    """
    times = Communication.of(traffic, fabric)
    computing = [micro_batch * shares.get(part.name, 0.0) for part in traffic.parts]
    named = [bool(part.name) for part in traffic.parts]
    there = sum(times.gathers)
    back = sum(gather for gather, block in zip(times.gathers, named, strict=True) if block)
    scattered = sum(times.scatters)
    micro_batches = traffic.micro_batches
    sent = traffic.passes * (micro_batches * (there + back) + scattered) + times.sums
    total = traffic.passes * micro_batches * micro_batch
    if not overlap or not traffic.parts:
        return StepTime(total, update, sent, sent)
    root = not named[0]
    out = waited_forward(times.gathers, [forward * seconds for seconds in computing], root)
    rest = [(1 - forward) * seconds for seconds in computing]
    plain = waited_backward(times.gathers, [0.0] * len(computing), rest, root)
    last = waited_backward(times.gathers, times.scatters, rest, root)
    waited = traffic.passes * (micro_batches * out + (micro_batches - 1) * plain + last) + times.sums
    return StepTime(total, update, sent, min(waited, sent))


def waited_forward(gathers: Sequence[float], computing: Sequence[float], root: bool) -> float:
    """Seconds that a forward pass waits for its parts, each gathered while the one before it computes."""
    first = 1 + root  # the root, which comes first, and the first block
    later = zip(gathers[first:], computing[first - 1 :], strict=False)
    return sum(gathers[:first]) + sum(max(0.0, gather - seconds) for gather, seconds in later)


def waited_backward(
    gathers: Sequence[float], scatters: Sequence[float], computing: Sequence[float], root: bool
) -> float:
    """Seconds that a backward pass waits, from the last block to the first, the root's gradients after all."""
    found = 0.0
    blocks = range(int(root), len(gathers))
    if blocks:
        found = max(0.0, gathers[-1] - (computing[0] if root else 0.0))
    for block in reversed(blocks):
        meanwhile = gathers[block - 1] if block - 1 in blocks else 0.0
        meanwhile += scatters[block + 1] if block + 1 in blocks else 0.0
        found += max(0.0, meanwhile - computing[block])
    return found + (scatters[blocks[0]] if blocks else 0.0) + (scatters[0] if root else 0.0)
