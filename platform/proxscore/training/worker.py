"""Where a loop runs: one plain process, a process of torchrun's, or a worker of Ray Train. The loop sees the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from proxscore.training.sharding import meshes

#: Writes a checkpoint into a folder; or copies what is to be written, and gives what writes it from another thread.
Write = Callable[[Path], Callable[[], None] | None]


class Worker(ABC):
    """One process that trains: its rank, device and meshes, and its line to the driver.

    Attributes:
        rank, world: its number among those that take part, and how many there are.
        device: that it computes on.
        meshes: how the network is shared among them; none: it is not.
        on_ray: whether this is a process of a Ray cluster.
        method_section: where the settings of the method that it trains are in the configuration.
    """

    rank: int = 0
    world: int = 1
    device: torch.device
    meshes: meshes.Meshes | None = None
    on_ray: bool = False
    method_section: str = "method"

    @property
    def mesh(self) -> DeviceMesh | None:
        """The mesh that FSDP2 shards over; none: the module stays whole."""
        return None if self.meshes is None else self.meshes.fsdp

    @property
    def draw_mesh(self) -> DeviceMesh | None:
        """The processes that score different draws of a step; none: all score the same."""
        return None if self.meshes is None else self.meshes.draw

    @property
    def data_rank(self) -> int:
        """The number of the part of a training batch that this process takes."""
        return 0 if self.meshes is None else self.meshes.data_rank

    @property
    def data_world(self) -> int:
        """The number of processes that share a training batch."""
        return 1 if self.meshes is None else self.meshes.data_world

    @abstractmethod
    def report(self, payload: dict[str, Any], write: Write | None = None, *, wait: bool = False) -> None:
        """Hand values to the driver; with ``write``, keep a checkpoint of what it writes into the folder it is given.

        All ranks call it equally often.

        Args:
            write: what it gives, if it gives anything, is called while the loop goes on.
            wait: until the checkpoint is where it will be kept, and the driver knows it; otherwise it may still be on its
                way while the loop goes on.
        """

    def busy(self) -> bool:
        """Say whether a checkpoint of this rank's is still being written or on its way: a report would wait for it."""
        return False

    def leaving(self) -> bool:
        """Say whether, since this was last asked, notice was given that machines of this run will be taken away.

        The same answer on all ranks, which ask equally often.
        """
        return False

    @abstractmethod
    def checkpoints(self) -> Iterator[AbstractContextManager[Path]]:
        """Give the checkpoints of this run that are kept, newest first: context managers that give a folder."""


def pick_device(setting: str) -> torch.device:
    """Pick the device that ``training.device`` names; ``auto`` takes a GPU if there is one."""
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(setting)
