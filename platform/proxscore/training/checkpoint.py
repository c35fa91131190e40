"""Checkpoints by torch.distributed.checkpoint: weights, variational state, counters; they reshard as Adam's state does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from proxscore.config import ConfigError


class Snapshot:
    """The state of a run as DCP's ``Stateful``: module, optimizer, and a dictionary of plain values."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
        self.module, self.optimizer, self.progress = module, optimizer, progress

    def state_dict(self) -> dict[str, Any]:
        weights, optimizer = get_state_dict(self.module, self.optimizer)
        return {"weights": weights, "optimizer": optimizer, "progress": dict(self.progress)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.module, self.optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"]
        )
        self.progress.update(state["progress"])


def save(folder: Path, snapshot: Snapshot) -> None:
    """Write this rank's part of a checkpoint into a folder (of its own or shared by the ranks).

    Raises:
        RuntimeError: it cannot be written, for example because the disk is full.
    """
    try:
        with _interrupts():
            dcp.save({"run": snapshot}, checkpoint_id=folder)
    except (CheckpointException, OSError) as error:
        raise RuntimeError(
            f"the checkpoint at step {snapshot.progress['step']} cannot be written: {_reason(error)}"
        ) from error


def damage(folder: Path) -> str | None:
    """What of a checkpoint is missing or cut short, in a few words; none: its files are as long as they must be."""
    try:
        pieces = dcp.FileSystemReader(folder).read_metadata().storage_data
    except Exception as error:  # whatever unpickling half a file raises
        return f".metadata cannot be read ({type(error).__name__})"
    ends: dict[str, int] = {}
    for piece in (pieces or {}).values():
        ends[piece.relative_path] = max(ends.get(piece.relative_path, 0), piece.offset + piece.length)
    for name, end in ends.items():
        file = folder / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size < end:
            return f"{name} has {file.stat().st_size:,} of {end:,} bytes"
    return None


def load(folder: Path, snapshot: Snapshot) -> None:
    """Read a checkpoint in place, with any number of ranks.

    Raises:
        ConfigError: the checkpoint is of another architecture or method, or is damaged; names what does not fit.
    """
    try:
        with _interrupts():
            dcp.load({"run": snapshot}, checkpoint_id=folder)
    except (CheckpointException, RuntimeError, ValueError, KeyError, OSError) as error:
        raise ConfigError(f"checkpoint {folder} does not fit this model and method: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first cause in what DCP raises, in one line."""
    cause = next(iter(getattr(error, "failures", {}).values()), (error,))
    return " ".join(str(cause[0]).split())[:300]


@contextmanager
def _interrupts() -> Iterator[None]:
    """Within the context, Ctrl-C is Ctrl-C: DCP wraps all that is raised within it in an error of its own."""
    try:
        yield
    except CheckpointException as error:
        if any(isinstance(failure, KeyboardInterrupt) for failure, _ in error.failures.values()):
            raise KeyboardInterrupt from error
        raise
