"""A worker of Ray Train."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from pyarrow.fs import FileSelector

from proxscore.config import Config, MethodSection
from proxscore.training.sharding import meshes
from proxscore.training.worker import Worker, Write


class RayWorker(Worker):
    """The worker that is a process of Ray Train's group: Ray keeps its checkpoints, and carries its reports.

    A checkpoint is written into a local folder, on an accelerator's host while training goes on, and uploaded while it does
    anywhere. Before the next one is taken, this one is known to the controller, which is what a run resumes from: no loss of
    a worker costs more than the checkpoint that was on its way.
    """

    on_ray = True

    def __init__(self, config: Config, method: MethodSection) -> None:
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.meshes = meshes.build_meshes(config, method, self.device.type, self.world)
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
        with _removed_if_unwritten(folder):
            later = write(folder)
        storage = ray.train.get_context().get_storage()

        def written_and_uploaded(checkpoint: Any, name: str) -> Any:
            assert later is not None
            try:
                with _removed_if_unwritten(folder):
                    later()
            except Exception:
                raise
            except BaseException as error:  # Ray's thread would say nothing, and the next report wait for ever
                raise RuntimeError(f"a checkpoint was not written to its end: {error}") from error
            return storage.persist_current_checkpoint(checkpoint, name)

        ray.train.report(
            payload,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            # A step that is done again gets a folder of its own: rank 0's name counts.
            checkpoint_dir_name=f"checkpoint_{payload['step']:09d}_{time.time_ns():x}",
            checkpoint_upload_mode=CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=None if later is None else written_and_uploaded,
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
        """Remove what a lost attempt left half uploaded in the run's folder, which the controller does not know."""
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

        reported = ray.train.get_all_reported_checkpoints()  # waits for what is on its way
        newest = ray.train.get_checkpoint()
        if newest is None:
            return
        yield _directory(newest)
        for held in sorted(reported, key=lambda held: held.metrics["step"], reverse=True):
            if held.checkpoint.path != newest.path:
                yield _directory(held.checkpoint)


UPLOADS = "proxscore-upload-"


@contextmanager
def _removed_if_unwritten(folder: Path) -> Iterator[None]:
    """If the context raises, a checkpoint's folder is removed: a full disk has room again."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _remove_uploads_of_the_dead() -> None:
    """Remove local folders of checkpoints whose process was killed before they were uploaded."""
    for folder in Path(tempfile.gettempdir()).glob(f"{UPLOADS}*"):
        if not psutil.pid_exists(int(folder.name.removeprefix(UPLOADS).split("-")[0])):
            shutil.rmtree(folder, ignore_errors=True)  # another rank may be at it


@contextmanager
def _directory(checkpoint: Any) -> Iterator[Path]:
    """Give a Ray checkpoint's folder, which is fetched if it lies elsewhere."""
    with checkpoint.as_directory() as folder:
        yield Path(folder)
