"""From where a posterior lies to an object that predicts with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from proxscore.config import ConfigError
from proxscore.posterior import Posterior
from proxscore.posterior.shards import DESCRIPTION_FILE
from proxscore.predictor.described import configuration_of
from proxscore.tasks.predictor import Predictor
from proxscore.tracking.located import located

DEVICES = ("auto", "cpu", "cuda", "mps")


def load(source: str | os.PathLike[str], *, device: str = "auto", overrides: Sequence[str] = ()) -> Predictor:
    """Open a saved posterior to predict with it; it needs neither its training data nor the weights that it started from.

    Nothing is fetched but the posterior itself, where it lies in MLflow, and nothing that its files hold is executed.

    Args:
        source: a folder (a posterior's, a run's, or a model's), ``runs:/ID``, ``models:/NAME/VERSION``,
            ``models:/NAME@ALIAS`` or ``models:/MODEL_ID``. MLflow is that of ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` here.
        device: ``cpu``, ``cuda``, ``mps``, or ``auto``: a GPU if there is one.
        overrides: ``key=value``, as a job takes them; ``tracking.uri=URI`` names another MLflow.

    Returns:
        What has ``predict``, ``sample(n)`` and ``sd()``.

    Raises:
        ConfigError: nothing is there (the nearest names of models are named), it is damaged, or it is of no task.
    """
    if device not in DEVICES:
        raise ConfigError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}")
    return opened(located(os.fspath(source), overrides), device, overrides)


def opened(folder: Path, device: str = "auto", overrides: Sequence[str] = ()) -> Predictor:
    """The same of a folder with ``posterior.json``."""
    posterior = Posterior.load(folder)
    where = str(folder / DESCRIPTION_FILE)
    config = configuration_of(posterior.description, list(overrides), where)
    config.task.check_description(posterior.description, where)
    device = config.training.device if device == "auto" else device
    predictor: Predictor = config.task.predictor(posterior, config, folder, _device(device))
    return predictor


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, and this machine has no GPU that torch can use: take cpu")
    return torch.device(name)
