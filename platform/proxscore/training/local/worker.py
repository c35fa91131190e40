"""A worker without Ray: one plain process, or one of several that torchrun started."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from proxscore.training.loop.checkpoint import damage
from proxscore.training.sharding import meshes
from proxscore.training.worker import Worker, Write


class LocalWorker(Worker):
    """The worker that is a plain process, or one of several that torchrun started and that see the same folder.

    Checkpoints are folders ``checkpoints/step-...`` that appear whole or not at all. The best by score and the newest
    are kept. One that is written while the loop goes on appears with the next report, at the end of the worker's context, or,
    if the process was killed after it was written, when the run goes on.

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
        self._behind: _Behind | None = None

    def report(self, payload: dict[str, Any], write: Write | None = None, *, wait: bool = False) -> None:
        self.complete()
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
                later = write(partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)  # a full disk has room again
                raise
            if later is not None:
                self._barrier()
                if self.rank == 0:
                    _note_score(partial, payload["score"])  # nothing is missing now but what is written behind
            self._behind = _Behind(partial, payload["step"], payload["score"], later)
            if later is None or wait:
                self.complete()

    def busy(self) -> bool:
        return self._behind is not None and self._behind.is_alive()

    def complete(self) -> None:
        """Wait for the checkpoint that is being written, if one is, on all ranks, and keep it.

        Raises:
            RuntimeError: it cannot be written; on all ranks.
        """
        behind = self._behind
        if behind is None:
            return
        behind.join()
        self._behind = None
        reasons: list[str | None] = [behind.error]
        if self.world > 1:
            reasons *= self.world
            dist.all_gather_object(reasons, behind.error)
        if any(reasons):
            shutil.rmtree(behind.folder, ignore_errors=True)
            raise RuntimeError(next(filter(None, reasons)))
        if self.rank == 0:
            _note_score(behind.folder, behind.score)
            self._keep(behind.folder, behind.step)
        self._barrier()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being written. Where other ranks cannot be asked, it is kept when the run goes on."""
        if error is None:
            self.complete()
        elif self.world > 1 and self._behind is not None:
            self._behind.join()
        elif self.world == 1:
            try:
                self.complete()
            except RuntimeError as unwritten:
                error.add_note(str(unwritten))

    def _adopt(self) -> None:
        """Keep what was written by processes that were killed before they could, and remove what was not written to its end."""
        if self.rank == 0:
            for partial in sorted(self.folder.glob("partial-*")):
                if (partial / SCORE).exists() and damage(partial) is None:
                    self._keep(partial, _step(partial))
                else:
                    shutil.rmtree(partial, ignore_errors=True)
        self._barrier()

    def _keep(self, partial: Path, step: int) -> None:
        final = self.folder / f"step-{step:09d}"
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
        """List the folders of complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def checkpoints(self) -> Iterator[AbstractContextManager[Path]]:
        self.complete()
        self._adopt()
        for folder in reversed(self.folders()):
            yield nullcontext(folder)


class _Behind(threading.Thread):
    """A checkpoint that is written while the loop goes on; at once, where nothing is left to write.

    Attributes:
        error: why it could not be written.
    """

    def __init__(self, folder: Path, step: int, score: float, write: Callable[[], None] | None) -> None:
        super().__init__(name="checkpoint")
        self.folder, self.step, self.score, self._write = folder, step, score, write
        self.error: str | None = f"the checkpoint at step {step} was not written to its end"
        self.start()

    def run(self) -> None:
        try:
            if self._write is not None:
                self._write()
            self.error = None
        except BaseException as error:  # raised where the loop can end by it
            self.error = str(error) or type(error).__name__
        finally:
            self._write = None


SCORE = "score.json"


def _note_score(folder: Path, score: float) -> None:
    (folder / SCORE).write_text(json.dumps(score))


def _score(folder: Path) -> float:
    file = folder / SCORE
    return float(json.loads(file.read_text())) if file.exists() else math.inf  # of an older version


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
