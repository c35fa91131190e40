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
    """Write this rank's part of a checkpoint into a folder (of its own or shared by the ranks)."""
    with _interrupts():
        dcp.save({"run": snapshot}, checkpoint_id=folder)


def load(folder: Path, snapshot: Snapshot) -> None:
    """Read a checkpoint in place, with any number of ranks.

    Raises:
        ConfigError: the checkpoint is of another architecture or method, or is damaged; names what does not fit.
    """
    try:
        with _interrupts():
            dcp.load({"run": snapshot}, checkpoint_id=folder)
    except (CheckpointException, RuntimeError, ValueError, KeyError, OSError) as error:
        cause = next(iter(getattr(error, "failures", {}).values()), (error,))
        reason = " ".join(str(cause[0]).split())[:300]
        raise ConfigError(f"checkpoint {folder} does not fit this model and method: {reason}") from error


@contextmanager
def _interrupts() -> Iterator[None]:
    """Within the context, Ctrl-C is Ctrl-C: DCP wraps all that is raised within it in an error of its own."""
    try:
        yield
    except CheckpointException as error:
        if any(isinstance(failure, KeyboardInterrupt) for failure, _ in error.failures.values()):
            raise KeyboardInterrupt from error
        raise
