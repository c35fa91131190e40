"""Devices and what connects them: the one table of hardware constants that estimates rest on, with sources.

| | peak bf16 (dense) | memory, bandwidth | NVLink, each way | network |
|---|---|---|---|---|
| A100 SXM 80 GB | 312 TFLOP/s | 80 GB, 2.04 TB/s | 300 GB/s | 200 Gbit/s a GPU (8 NICs of HDR InfiniBand) |
| H100 SXM | 989 TFLOP/s | 80 GB, 3.35 TB/s | 450 GB/s | 400 Gbit/s a GPU (8 NICs of NDR InfiniBand) |
| H200 SXM | 989 TFLOP/s | 141 GB, 4.8 TB/s | 450 GB/s | 400 Gbit/s a GPU |

Sources: NVIDIA's data sheets of the A100 (nvidia-a100-datasheet-us-nvidia-1758950-r4), the H100 and the H200 (NVLink's 600 and
900 GB/s there are both directions together), and of DGX A100, DGX H100 and DGX H200 (NICs: one for each of the eight GPUs).
A price of an hour is no property of a device: it is a setting.

The time of a collective is NCCL's own model of its ring (src/graph/tuning.cc of NVIDIA/nccl, baseLatencies and hwLatencies):
a start, a hop for each other rank, and the bytes over the narrowest link; the faster of its protocols LL128 and Simple counts.
What a network or NVLink gives of its rate in practice, :data:`REACHED`, is an assumption of this module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

#: Of a link's rate: what collectives reach. Assumed; nccl-tests on such machines find 0.75 to 0.9.
REACHED = 0.8


@dataclass(frozen=True)
class Protocol:
    """How messages travel: seconds until the first byte, of a hop within and between machines; share of the bandwidth."""

    start: float
    inside: float
    across: float
    share: float = 1.0


#: NCCL's ring: LL128 (of 128 bytes, 120 are data) and Simple.
NCCL = (Protocol(14.0e-6, 1.9e-6, 4.0e-6, 120 / 128), Protocol(8.4e-6, 3.4e-6, 14.0e-6))


@dataclass(frozen=True)
class Fabric:
    """What connects workers.

    Attributes:
        per_machine: workers of a machine.
        inside, across: bytes per second and worker within a machine, and out of it.
        protocols: to choose from, message by message.
    """

    per_machine: int
    inside: float
    across: float
    protocols: tuple[Protocol, ...] = NCCL

    def gather(self, size: float, ranks: int, apart: int = 1) -> float:
        """Seconds of an all-gather that ends, or of a reduce-scatter that begins, with so many bytes on each rank.

        Args:
            ranks: that take part.
            apart: by how much the numbers of neighbours differ: workers of a machine have consecutive numbers.
        """
        if ranks == 1 or not size:
            return 0.0
        here = max(min(ranks, self.per_machine // apart), 1)
        machines = math.ceil(ranks / here)
        # A machine's workers bring in together, each over a NIC of its own, what the other machines have.
        bound = max(
            size * (1 - 1 / ranks) / self.inside if here > 1 else 0.0,
            size * (1 - 1 / machines) / (here * self.across),
        )
        hops = machines - 1
        times = (p.start + (ranks - 1 - hops) * p.inside + hops * p.across + bound / p.share for p in self.protocols)
        return min(times)

    def reduce(self, size: float, ranks: int, apart: int = 1) -> float:
        """Seconds of an all-reduce of so many bytes: it is a reduce-scatter and an all-gather."""
        return 2 * self.gather(size, ranks, apart) - min(p.start for p in self.protocols) if ranks > 1 and size else 0.0


@dataclass(frozen=True)
class Hardware:
    """A kind of device: operations per second in bfloat16, bytes of its memory, and bytes per second of that; its fabric."""

    peak: float
    memory: float
    bandwidth: float
    fabric: Fabric

    def with_network(self, gbit: float) -> Hardware:
        """The same with another network, in Gbit/s a device."""
        return replace(self, fabric=replace(self.fabric, across=REACHED * gbit * 1e9 / 8))


def _device(tflops: float, gigabytes: float, terabytes: float, nvlink: float, gbit: float) -> Hardware:
    fabric = Fabric(8, REACHED * nvlink * 1e9, REACHED * gbit * 1e9 / 8)
    return Hardware(tflops * 1e12, gigabytes * 1e9, terabytes * 1e12, fabric)


DEVICES = {
    "A100": _device(312, 80, 2.04, 300, 200),
    "H100": _device(989, 80, 3.35, 450, 400),
    "H200": _device(989, 141, 4.8, 450, 400),
}


def simple(gbit: float, latency_us: float) -> Fabric:
    """Workers that are all alike: so many Gbit/s for each, and microseconds for a message."""
    rate = gbit * 1e9 / 8
    return Fabric(1, rate, rate, (Protocol(latency_us * 1e-6, 0.0, 0.0),))
