"""Where a loop runs: one plain process, a process of torchrun's, or a worker of Ray Train. The loop sees the same."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from pyarrow.fs import FileSelector
from torch.distributed.device_mesh import DeviceMesh

from proxscore.config import Config, MethodSection
from proxscore.training import meshes

Write = Callable[[Path], None]


class Context(ABC):
    """Rank, device and meshes of this process, and its line to the driver."""

    rank: int = 0
    world: int = 1
    device: torch.device
    meshes: meshes.Meshes | None = None
    on_ray: bool = False  # whether this is a process of a Ray cluster's

    @property
    def mesh(self) -> DeviceMesh | None:
        """What FSDP2 shards over; none: the module stays whole."""
        return None if self.meshes is None else self.meshes.fsdp

    @property
    def draw_mesh(self) -> DeviceMesh | None:
        """Processes that score different draws of a step; none: all score the same."""
        return None if self.meshes is None else self.meshes.draw

    @property
    def data_rank(self) -> int:
        """Whose part of a training batch this process takes."""
        return 0 if self.meshes is None else self.meshes.data_rank

    @property
    def data_world(self) -> int:
        """Processes that share a training batch."""
        return 1 if self.meshes is None else self.meshes.data_world

    @abstractmethod
    def report(self, payload: dict[str, Any], write: Write | None = None, *, wait: bool = False) -> None:
        """Hand values to the driver; with ``write``, keep a checkpoint of what it writes into the folder it is given.

        All ranks call it equally often.

        Args:
            wait: until the checkpoint is where it will be kept, and the driver knows it; otherwise it may still be on its
                way while the loop goes on.
        """

    def busy(self) -> bool:
        """Whether a checkpoint of this rank's is still on its way: a report would wait for it."""
        return False

    def leaving(self) -> bool:
        """Whether, since this was last asked, notice was given that machines of this run will be taken away.

        The same answer on all ranks, which ask equally often.
        """
        return False

    @abstractmethod
    def checkpoints(self) -> Iterator[AbstractContextManager[Path]]:
        """The checkpoints of this run that are kept, newest first: context managers that give a folder."""


def pick_device(setting: str) -> torch.device:
    """The device that ``training.device`` names; ``auto`` takes a GPU if there is one."""
    if setting == "auto":
        setting = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(setting)


class LocalContext(Context):
    """One plain process, or one of several that torchrun started and that see the same folder.

    Checkpoints are folders ``checkpoints/step-...`` that appear whole or not at all. The best by score and the newest
    are kept.

    Args:
        folder: of the run.
        sink: receives a list with the payloads of each report, by rank; called in the first process alone.
        keep: number of the best that are kept, beside the newest.
        meshes: of the process group, if there is one.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        sink: Callable[[list[dict[str, Any]]], None],
        keep: int,
        meshes: meshes.Meshes | None = None,
    ) -> None:
        self.folder, self.device, self.sink, self.keep, self.meshes = folder / "checkpoints", device, sink, keep, meshes
        if meshes is not None:
            self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def report(self, payload: dict[str, Any], write: Write | None = None, *, wait: bool = False) -> None:
        payloads = self._gathered(payload)
        if self.rank == 0:
            self.sink(payloads)  # before the checkpoint: a run that dies in between repeats steps, and loses none
        if write is not None:
            partial = self.folder / f"partial-{payload['step']:09d}"
            if self.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)  # of an earlier attempt
                partial.mkdir(parents=True)
            self._barrier()
            try:
                write(partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)  # a full disk has room again
                raise
            self._barrier()
            if self.rank == 0:
                (partial / "score.json").write_text(json.dumps(payload["score"]))
                self._keep(partial, self.folder / f"step-{payload['step']:09d}")
            self._barrier()

    def _keep(self, partial: Path, final: Path) -> None:
        if final.exists():  # the same step of an earlier attempt
            shutil.rmtree(final)
        partial.rename(final)
        *older, _ = found = self.folders()
        for worse in sorted(found, key=lambda folder: (_score(folder), -_step(folder)))[self.keep :]:
            if worse in older:
                shutil.rmtree(worse)

    def _gathered(self, payload: dict[str, Any]) -> list[dict[str, Any]]:
        if self.world == 1:
            return [payload]
        payloads: list[Any] = [None] * self.world
        dist.gather_object(payload, payloads if self.rank == 0 else None)
        return payloads

    def _barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def folders(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def checkpoints(self) -> Iterator[AbstractContextManager[Path]]:
        for folder in reversed(self.folders()):
            yield nullcontext(folder)


def _score(folder: Path) -> float:
    file = folder / "score.json"
    return float(json.loads(file.read_text())) if file.exists() else math.inf  # of an older version


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


class RayContext(Context):
    """A worker of Ray Train: a rank of the process group, with storage and reports by Ray.

    A checkpoint is written into a local folder and uploaded while training goes on. Before the next one is written, this
    one is known to the controller, which is what a run resumes from: no loss of a worker costs more than the checkpoint
    that was on its way.
    """

    on_ray = True

    def __init__(self, config: Config, method: MethodSection) -> None:
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.meshes = meshes.build(config, method, self.device.type, self.world)
        self._upload: Path | None = None
        self._noticed: set[str] = set()
        _remove_uploads_of_the_dead()
        if self.rank == 0:
            self._remove_unregistered(context.get_storage())

    def report(self, payload: dict[str, Any], write: Write | None = None, *, wait: bool = False) -> None:
        import ray.train
        from ray.train import CheckpointConsistencyMode, CheckpointUploadMode

        if write is None:
            ray.train.report(payload)
            return
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        self._upload = folder = Path(tempfile.mkdtemp(prefix=f"{UPLOADS}{os.getpid()}-"))
        try:
            write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk has room again
            raise
        ray.train.report(
            payload,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            # A step that is done again gets a folder of its own: rank 0's name counts.
            checkpoint_dir_name=f"checkpoint_{payload['step']:09d}_{time.time_ns():x}",
            checkpoint_upload_mode=CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
        if wait:
            ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)

    def busy(self) -> bool:
        return self._upload is not None and self._upload.exists()  # Ray removes it when it is uploaded

    def leaving(self) -> bool:
        import ray.train

        notice = ray.train.get_preemption_info()
        nodes = set() if notice is None else set(notice.preempted_node_ids)
        new, self._noticed = nodes - self._noticed, self._noticed | nodes
        return bool(new)

    def _remove_unregistered(self, storage: Any) -> None:
        """What an attempt that was lost left half uploaded in the run's folder: the controller does not know it."""
        import ray.train

        known = {Path(held.checkpoint.path).name for held in ray.train.get_all_reported_checkpoints()}
        newest = ray.train.get_checkpoint()
        if newest is not None:
            known.add(Path(newest.path).name)
        files = storage.storage_filesystem
        for found in files.get_file_info(FileSelector(storage.experiment_fs_path)):
            if found.base_name.startswith("checkpoint_0") and found.base_name not in known:
                files.delete_dir(found.path)

    def checkpoints(self) -> Iterator[AbstractContextManager[Path]]:
        import ray.train

        newest = ray.train.get_checkpoint()
        if newest is None:
            return
        yield _directory(newest)
        reported = ray.train.get_all_reported_checkpoints()
        for held in sorted(reported, key=lambda held: held.metrics["step"], reverse=True):
            if held.checkpoint.path != newest.path:
                yield _directory(held.checkpoint)


UPLOADS = "proxscore-upload-"


def _remove_uploads_of_the_dead() -> None:
    """Local folders of checkpoints whose process was killed before they were uploaded."""
    for folder in Path(tempfile.gettempdir()).glob(f"{UPLOADS}*"):
        if not psutil.pid_exists(int(folder.name.removeprefix(UPLOADS).split("-")[0])):
            shutil.rmtree(folder, ignore_errors=True)  # another rank may be at it


@contextmanager
def _directory(checkpoint: Any) -> Iterator[Path]:
    """A Ray checkpoint's folder, which is fetched if it lies elsewhere."""
    with checkpoint.as_directory() as folder:
        yield Path(folder)
