"""Processes that torchrun started: the loop's ranks, without Ray.

    torchrun --nproc-per-node 2 jobs/train.py --config jobs/configs/quickstart.yaml

All of them run the same job; the first one is the driver too. They must see the same storage folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from proxscore.config import Config
from proxscore.training.worker import pick_device


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def rank() -> int:
    """Give the number of this process among all; zero without torchrun."""
    return int(os.environ["RANK"]) if launched() else 0


def with_process_count(config: Config) -> Config:
    """Set the number of workers to that of torchrun's processes."""
    if not launched():
        return config
    training = config.training.model_copy(update={"workers": int(os.environ["WORLD_SIZE"]), "min_workers": None})
    return config.model_copy(update={"training": training})


def with_common_name(config: Config) -> Config:
    """Set the name to that of the first process: without a given one, each has made up its own."""
    if not launched():
        return config
    names = [config.name]
    dist.broadcast_object_list(names)
    return config.model_copy(update={"name": names[0]})


def device(kind: torch.device) -> torch.device:
    """Pick the device that this process computes on, given its kind: under torchrun each has a GPU of its own."""
    if not launched():
        return kind
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if kind.type == "cuda" else kind


def processes_on(shared: torch.device) -> int:
    """Count the processes that share a device of this machine, whose CPUs are one device."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() and shared.type == "cpu" else 1


@contextmanager
def process_group(config: Config) -> Iterator[None]:
    """Within the context, the processes that torchrun started can talk to each other."""
    own = device(pick_device(config.training.device))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
