"""What a cell leaves in its folder: ``cell.json``, which appears whole or not at all, and predictions for figures."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxscore import storage
from proxscore.config import ConfigError
from proxscore.experiments.comparison.plan import Cell

RECORD, PREDICTIONS = "cell.json", "predictions.npz"


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write ``cell.json``: after everything else that the cell leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.write(folder / RECORD, json.dumps(record, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a cell, finished or failed; none if there is none."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    return record


def finished(cell: Cell) -> dict[str, Any] | None:
    """The record of a cell that was finished before; none for one that has to run: a new one, or one that failed.

    Raises:
        ConfigError: it was finished with other settings; names the first.
    """
    record = read(cell.folder)
    if record is None or record["status"] != "finished":
        return None
    now = json.loads(json.dumps(cell.settings()))  # as JSON gives it back
    for key in (*record["settings"], *now):
        before, wanted = record["settings"].get(key), now.get(key)
        if before != wanted:
            raise ConfigError(
                f"{cell.folder} was finished with {key}={before}, now it is {wanted}: take another name, or remove the folder"
            )
    return record


def keep_predictions(folder: Path, predictions: Mapping[str, Tensor]) -> None:
    """Write what a task keeps of the predictions for the test split."""
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in predictions.items()}
    with storage.replacing(folder / PREDICTIONS) as partial:
        np.savez_compressed(partial, **arrays)


def predictions(folder: Path) -> dict[str, Tensor]:
    """Read the predictions that :func:`keep_predictions` wrote."""
    with np.load(folder / PREDICTIONS) as held:
        return {name: torch.from_numpy(held[name]) for name in held.files}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time: that of a comparison whose driver was killed may still be there for a moment."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
