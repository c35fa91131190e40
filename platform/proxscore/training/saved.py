"""A saved posterior, from a folder or an MLflow run, and the configuration that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxscore.config import Config, ConfigError
from proxscore.posterior import Posterior
from proxscore.posterior.shards import DESCRIPTION_FILE
from proxscore.posterior.stored import read_header
from proxscore.posterior.stored_tensors import StoredTensors
from proxscore.predictor.described import configuration_of
from proxscore.tracking.located import located


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
        source: a folder, ``runs:/ID``, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``; see
            :func:`proxscore.tracking.located.located`.
        overrides: changes to the task it was trained on, and to settings of evaluation, training and tracking. They alone
            may name weights to load, or a network that is fetched from elsewhere: a description may not.

    Raises:
        ConfigError: nothing is there, its description is none of a task, or an override is not valid.
    """
    folder = located(source, overrides)
    header = read_header(folder)
    where = str(folder / DESCRIPTION_FILE)
    if not isinstance(header, dict) or header.get("format") != 1:
        raise ConfigError(f"{where}: not a posterior of format 1")
    StoredTensors(folder)  # refuses files that are missing or cut short
    config = configuration_of(header, overrides, where)
    config.task.check_description(header, where)
    return Described(folder, header, config)


def load(source: str, overrides: list[str]) -> Saved:
    """Open a saved posterior, with the configuration that it was trained with; see :func:`describe`.

    Raises:
        ConfigError: nothing is there, it is damaged, its description is none of a task, or an override is not valid.
    """
    folder = located(source, overrides)
    posterior = Posterior.load(folder)
    where = str(folder / DESCRIPTION_FILE)
    config = configuration_of(posterior.description, overrides, where)
    config.task.check_description(posterior.description, where)
    return Saved(posterior, config)


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


def other_draws(trained: dict[str, Any], metrics: Mapping[str, float], draws: int | str) -> list[str]:
    """Say of calibrated numbers that they were calibrated with another number of draws than predicts.

    Args:
        trained: the posterior's description.
    """
    before = (trained.get("validation") or {}).get("draws")
    if before in (None, draws) or not any(name.startswith("calibrated/") for name in metrics):
        return []
    return [
        f"note       calibrated/* are by thresholds that were calibrated with {before} draws of the posterior, and "
        f"{draws} predict"
    ]
