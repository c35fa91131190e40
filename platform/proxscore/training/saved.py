"""A saved posterior, from a folder or an MLflow run, and the configuration that it was trained with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxscore import config as configuration
from proxscore.config import Config, expanded
from proxscore.posterior import Posterior
from proxscore.tracking.artifacts import download


@dataclass(frozen=True)
class Saved:
    """A posterior, and the configuration of its task with overrides."""

    posterior: Posterior
    config: Config


def load(source: str, overrides: list[str]) -> Saved:
    """Open a posterior.

    Args:
        source: a folder, or ``runs:/<id>``, or an id of 32 hexadecimal digits: an MLflow run, whose posterior is downloaded.
        overrides: changes to the task it was trained on, and to settings of evaluation, training and tracking.

    Raises:
        ConfigError: nothing is there, or an override is not valid.
    """
    posterior = Posterior.load(_folder(source, overrides))
    return Saved(posterior, _config(posterior.description, overrides))


def _folder(source: str, overrides: list[str]) -> Path:
    """The folder of a saved posterior; that of an MLflow run is downloaded."""
    run_id = source.removeprefix("runs:/")
    if not (source.startswith("runs:/") or re.fullmatch("[0-9a-f]{32}", source)) or Path(source).exists():
        return expanded(source)
    return download(run_id, "posterior", overrides)


def _config(description: dict[str, Any], overrides: list[str]) -> Config:
    task = dict(description["task"])
    if any(override.startswith("task.data.kind=") for override in overrides):
        task["data"] = {}  # another kind of data has other keys
    return configuration.load(overrides=overrides, base={"name": "posterior", "task": task})
