"""What the workers of a job send one another in a step, from the sizes of the network's parts, and how long that takes.

FSDP2 gathers every block for the forward and again for the backward pass of a micro-batch, and what lies outside of blocks
once; gradients are scattered after the last micro-batch. Replicas sum their shards of the gradients, draw groups their scores
and curvatures.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from proxscore.config import Config, MethodSection
from proxscore.training.sharding import meshes
from proxscore.training.sharding.parallelize import blocks

GROUP_NUMBERS = 2  # a score and a curvature of each parameter
#: Gbit/s and microseconds of a message where ``cost`` has none.
ONE_MACHINE, ONE_MACHINE_GPUS, NETWORK = (3.0, 600.0), (200.0, 30.0), (10.0, 500.0)


@dataclass(frozen=True)
class Traffic:
    """What one worker takes part in during a step.

    Attributes:
        gathered: bytes of whole parameters that all-gathers end with.
        scattered: bytes of whole gradients that reduce-scatters begin with.
        reduced: bytes that all-reduces sum over replicas and draw groups.
        messages: collectives, with that of the loss.
        received: bytes that this worker receives.
    """

    gathered: float = 0.0
    scattered: float = 0.0
    reduced: float = 0.0
    messages: int = 0
    received: float = 0.0

    def seconds(self, bandwidth: float, latency: float) -> float:
        """Seconds at Gbit/s and microseconds, as if nothing were computed meanwhile."""
        return self.received * 8 / (bandwidth * 1e9) + self.messages * latency / 1e6


def traffic(config: Config, method: MethodSection, module: nn.Module) -> Traffic:
    """Count a step's traffic of a network, whose numbers need not be there.

    Raises:
        ConfigError: the workers cannot be arranged like that.
    """
    groups, replicas, shards = meshes.arrangement(config, method)
    training, inner = config.training, method.member
    if groups * replicas * shards == 1:
        return Traffic()
    found = blocks(module)
    inside = {id(p): p for block in found.values() for p in block.parameters()}
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    in_blocks = sum(p.numel() for p in inside.values())
    at_root = sum(p.numel() for p in module.parameters()) - in_blocks
    parts = len(found) + (at_root > 0)
    wide = 2 if training.precision == "bf16" else 4
    passes = inner.evaluations_per_step() // groups
    gathered = passes * training.accumulate * wide * (2 * in_blocks + at_root)
    scattered = passes * 4.0 * trained
    messages = passes * (training.accumulate * (2 * len(found) + (at_root > 0)) + parts)
    reduced = received = 0.0
    if shards > 1:
        received = (gathered + scattered) * (shards - 1) / shards
    else:
        gathered = scattered = messages = 0
    if replicas > 1:
        size = passes * 4.0 * trained / shards
        reduced, received = reduced + size, received + 2 * size * (replicas - 1) / replicas
        messages += passes * parts
    if groups > 1:
        size = GROUP_NUMBERS * 4.0 * trained / shards
        reduced, received = reduced + size, received + 2 * size * (groups - 1) / groups
        messages += 1
    return Traffic(float(gathered), float(scattered), reduced, messages + 1, received)


def link(config: Config, device: torch.device) -> tuple[float, float, str]:
    """Bandwidth (Gbit/s) and latency (microseconds) between workers, and where these come from, for people."""
    training, cost = config.training, config.cost
    here = torch.cuda.device_count() if device.type == "cuda" else (os.cpu_count() or 1) / training.cpus_per_worker
    if training.workers > here:
        (bandwidth, latency), where = NETWORK, "a network"
    elif device.type == "cuda":
        (bandwidth, latency), where = ONE_MACHINE_GPUS, "the GPUs of one machine"
    else:
        (bandwidth, latency), where = ONE_MACHINE, "one machine"
    known = cost.bandwidth_gbit is not None
    bandwidth = cost.bandwidth_gbit or bandwidth
    latency = latency if cost.latency_us is None else cost.latency_us
    source = "cost.bandwidth_gbit" if known else f"assumed of {where}; set cost.bandwidth_gbit"
    return bandwidth, latency, f"{bandwidth:g} Gbit/s, {latency:g} µs a message ({source})"
