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
    """Of this process; zero without torchrun."""
    return int(os.environ["RANK"]) if launched() else 0


def counted(config: Config) -> Config:
    """The configuration with torchrun's number of processes as that of workers."""
    if not launched():
        return config
    training = config.training.model_copy(update={"workers": int(os.environ["WORLD_SIZE"]), "min_workers": None})
    return config.model_copy(update={"training": training})


def named(config: Config) -> Config:
    """The configuration with the first process's name: without a given one each has made up its own."""
    if not launched():
        return config
    names = [config.name]
    dist.broadcast_object_list(names)
    return config.model_copy(update={"name": names[0]})


def device(kind: torch.device) -> torch.device:
    """This process's device of a kind."""
    if not launched():
        return kind
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if kind.type == "cuda" else kind


def on_device(place: torch.device) -> int:
    """How many processes share a device (the CPU is one)."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() and place.type == "cpu" else 1


@contextmanager
def group(config: Config) -> Iterator[None]:
    """The process group of all processes."""
    place = device(pick_device(config.training.device))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
