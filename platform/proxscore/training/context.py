"""Where a loop runs: one plain process, or a worker of Ray Train. The loop sees the same few functions."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Write = Callable[[Path], None]


class Context(ABC):
    """Rank, device and mesh of this process, and its line to the driver."""

    rank: int = 0
    world: int = 1
    device: torch.device
    mesh: DeviceMesh | None = None

    @abstractmethod
    def report(self, payload: dict[str, Any], write: Write | None = None) -> None:
        """Hand values to the driver; with ``write``, keep a checkpoint of what it writes into the folder it is given.

        All ranks call it equally often.
        """

    @abstractmethod
    def latest_checkpoint(self) -> Any:
        """A context manager that gives the folder of the last checkpoint of this run, or none."""

    def shard(self, name: str) -> Any:
        """This worker's share of a Ray Data data set, or none where the data comes without Ray."""
        return None


def pick_device(setting: str) -> torch.device:
    """The device that ``training.device`` names; ``auto`` takes a GPU if there is one."""
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(setting)


class LocalContext(Context):
    """One plain process. Checkpoints are folders ``checkpoints/step-...`` that appear whole or not at all.

    Args:
        folder: of the run.
        sink: receives a list with the payload of each report.
        keep: number of checkpoints kept.
    """

    def __init__(
        self, folder: Path, device: torch.device, sink: Callable[[list[dict[str, Any]]], None], keep: int
    ) -> None:
        self.folder, self.device, self.sink, self.keep = folder / "checkpoints", device, sink, keep

    def report(self, payload: dict[str, Any], write: Write | None = None) -> None:
        self.sink([payload])  # before the checkpoint: a run that dies in between repeats steps, and loses none
        if write is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=self.folder, prefix="partial-"))
            write(partial)
            final = self.folder / f"step-{payload['step']:09d}"
            if final.exists():  # the same step of an earlier attempt
                shutil.rmtree(final)
            partial.rename(final)
            for old in self.checkpoints()[: -self.keep]:
                shutil.rmtree(old)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    @contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        found = self.checkpoints()
        yield found[-1] if found else None


class RayContext(Context):
    """A worker of Ray Train: a rank of the process group, with storage and reports by Ray."""

    def __init__(self) -> None:
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.mesh = init_device_mesh(self.device.type, (self.world,), mesh_dim_names=("shard",))

    def report(self, payload: dict[str, Any], write: Write | None = None) -> None:
        import ray.train

        if write is None:
            ray.train.report(payload)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(payload, checkpoint=ray.train.Checkpoint.from_directory(folder))

    @contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def shard(self, name: str) -> Any:
        import ray.train

        return ray.train.get_dataset_shard(name)
