"""What connects a job's workers: as it is configured, as the described device has it, or assumed of where the workers are."""

from __future__ import annotations

import os

import torch

from proxscore.config import Config
from proxscore.training.preflight.hardware import DEVICES, Fabric, simple
from proxscore.training.worker import pick_device

#: Gbit/s and microseconds of a message where ``cost`` has none.
ONE_MACHINE, ONE_MACHINE_GPUS, NETWORK = (3.0, 600.0), (200.0, 30.0), (10.0, 500.0)


def fabric_of(config: Config, device: torch.device) -> tuple[Fabric, str]:
    """The fabric between workers, and where it comes from, for people."""
    cost = config.cost
    if cost.device is not None and cost.bandwidth_gbit is None and cost.latency_us is None:
        fabric = DEVICES[cost.device].fabric
        inside, across = fabric.inside * 8e-9, fabric.across * 8e-9
        source = f"{inside:g} Gbit/s within machines of {fabric.per_machine}, {across:g} between them (cost.device)"
        return fabric, source
    bandwidth, latency, source = link(config, device)
    return simple(bandwidth, latency), source


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


def described_device(config: Config) -> torch.device:
    """What workers run on: GPUs where ``cost.device`` names them, or what this process would choose."""
    return torch.device("cuda") if config.cost.device is not None else pick_device(config.training.device)


def overlaps(config: Config, device: torch.device) -> bool:
    """Whether workers compute while they communicate: GPUs do; gloo's processes wait."""
    return config.cost.device is not None or device.type == "cuda"
