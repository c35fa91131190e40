"""A saved posterior, from a folder or an MLflow run, and the configuration that it was trained with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from proxscore import config as configuration
from proxscore.config import TASKS, Config, ConfigError, TaskSection, expanded
from proxscore.posterior import Posterior
from proxscore.posterior.shards import DESCRIPTION_FILE
from proxscore.posterior.stored import read_header
from proxscore.posterior.stored_tensors import StoredTensors
from proxscore.tracking.artifacts import download


@dataclass(frozen=True)
class Described:
    """A saved posterior that has not been read yet: its folder, its description, the configuration of its task with overrides."""

    folder: Path
    description: dict[str, Any]
    config: Config


@dataclass(frozen=True)
class Saved:
    """A posterior, and the configuration of its task with overrides."""

    posterior: Posterior
    config: Config


def describe(source: str, overrides: list[str]) -> Described:
    """Find a saved posterior, with the configuration that it was trained with; its numbers are left where they are.

    Args:
        source: a folder, or ``runs:/<id>``, or an id of 32 hexadecimal digits: an MLflow run, whose posterior is downloaded.
        overrides: changes to the task it was trained on, and to settings of evaluation, training and tracking. They alone
            may name weights to load, or a network that is fetched from elsewhere: a description may not.

    Raises:
        ConfigError: nothing is there, its description is none of a task, or an override is not valid.
    """
    folder = _folder(source, overrides)
    header = read_header(folder)
    where = str(folder / DESCRIPTION_FILE)
    if not isinstance(header, dict) or header.get("format") != 1:
        raise ConfigError(f"{where}: not a posterior of format 1")
    StoredTensors(folder)  # refuses files that are missing or cut short
    config = _config(header, overrides, where)
    config.task.check_description(header, where)
    return Described(folder, header, config)


def load(source: str, overrides: list[str]) -> Saved:
    """Open a saved posterior, with the configuration that it was trained with; see :func:`describe`.

    Raises:
        ConfigError: nothing is there, it is damaged, its description is none of a task, or an override is not valid.
    """
    folder = _folder(source, overrides)
    posterior = Posterior.load(folder)
    where = str(folder / DESCRIPTION_FILE)
    config = _config(posterior.description, overrides, where)
    config.task.check_description(posterior.description, where)
    return Saved(posterior, config)


def _folder(source: str, overrides: list[str]) -> Path:
    """The folder of a saved posterior; that of an MLflow run is downloaded."""
    run_id = run_id_of(source)
    return expanded(source) if run_id is None else download(run_id, "posterior", overrides)


def run_id_of(source: str) -> str | None:
    """The MLflow run that a source names; none: it is a folder."""
    if not (source.startswith("runs:/") or re.fullmatch("[0-9a-f]{32}", source)) or Path(source).exists():
        return None
    return source.removeprefix("runs:/")


def _config(description: dict[str, Any], overrides: list[str], where: str) -> Config:
    task = description.get("task")
    if not isinstance(task, dict):
        raise ConfigError(f"{where}: has no section 'task', which says what the posterior was trained on")
    for key in ("model", "data"):
        if not isinstance(task.get(key), dict):
            raise ConfigError(f"{where}: task has no section {key!r}")
    section = _section(task.get("kind"))
    task = task | {"model": section.described_model(task["model"], where)}
    configuration.parse({"name": "posterior", "task": task}, where)  # what is wrong there is not the overrides' fault
    kinds = [override.partition("=")[2] for override in overrides if override.startswith("task.data.kind=")]
    if kinds and kinds[-1] != task["data"].get("kind"):  # another kind of data has other keys
        task["data"] = section.prepared_as(task["data"], kinds[-1])
    return configuration.load(overrides=overrides, base={"name": "posterior", "task": task})


def _section(kind: Any) -> type[TaskSection]:
    """The section of a task's kind; what is no kind of a task is refused with the rest of the configuration."""
    known = kind if isinstance(kind, str) and kind in TASKS.kinds() else TASKS.kinds()[0]
    return cast(type[TaskSection], TASKS.section(known))


def seen_in_training(trained: dict[str, Any], config: Config, described: dict[str, Any], split: str) -> list[str]:
    """Say of a split that is another one of the same data that the posterior may have been trained on some of its rows.

    Args:
        trained: the posterior's description.
        described: what the task says of its data now.
    """
    before, now = (((data or {}).get("splits") or {}).get("sha256") for data in (trained.get("data"), described))
    old, new = (trained.get("task") or {}).get("data") or {}, config.task.data.model_dump(mode="json")
    same = all(old.get(key) == new.get(key) for key in ("kind", "path"))
    if not (same and isinstance(before, dict) and isinstance(now, dict)) or before.get(split) == now.get(split):
        return []
    return [
        f"warning    this {split} split is not that of training: it may hold rows that the posterior was trained on"
    ]
