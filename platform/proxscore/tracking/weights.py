"""Weights in MLflow to start from: downloaded once, into the folder where runs are stored, which workers read."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from proxscore.config import ConfigError, masked
from proxscore.tracking.located import everywhere, holding, model_of

_RUN, _VERSION, _ALIAS = r"runs:/+([0-9a-f]{32})(?:/(.+))?", r"models:/+([^/@]+)/(.+)", r"models:/+([^/@]+)@(.+)"


def local_weights(weights: Path, storage: str, tracking_uri: str) -> Path:
    """The folder of weights that a URI of MLflow names, downloaded; any other path as it is.

    Args:
        weights: ``runs:/ID`` (its posterior), ``runs:/ID/PATH``, ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a path.
        storage: ``training.storage``.
        tracking_uri: of the server or database.

    Raises:
        ConfigError: there is no such run, model, version or alias, or the storage is no folder.
    """
    text = str(weights)
    if not text.startswith(("runs:", "models:")):
        return weights
    if "://" in storage:
        raise ConfigError(
            f"task.model.weights {text}: MLflow's weights are downloaded into training.storage, and {masked(storage)} is no "
            "folder: download them yourself, and name the file"
        )
    uri, label = _resolved(text, tracking_uri)
    target = Path(storage).expanduser().absolute() / "weights" / label
    if not target.exists():
        _download(text, uri, tracking_uri, target)
    return target


def _resolved(text: str, tracking_uri: str) -> tuple[str, str]:
    """Where the artifacts lie, and a name for their folder; an alias is looked up, as it may move."""
    from mlflow import MlflowClient  # takes seconds
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri)
    try:
        if found := re.fullmatch(_RUN, text):
            run, path = found[1], found[2] or "posterior"
            model = model_of(client.get_run(run)) if path == "posterior" else None
            return model or f"runs:/{run}/{path}", f"{run}-{path.replace('/', '-')}"
        if found := re.fullmatch(_ALIAS, text):
            version = client.get_model_version_by_alias(found[1], found[2]).version
        elif found := re.fullmatch(_VERSION, text):
            version = found[2]
        else:
            raise ConfigError(
                f"task.model.weights {text}: expected runs:/ID, runs:/ID/PATH, models:/NAME/VERSION or models:/NAME@ALIAS"
            )
        return client.get_model_version_download_uri(found[1], version), f"{found[1]}-{version}"
    except MlflowException as error:
        raise ConfigError(masked(f"task.model.weights {text}: {' '.join(str(error).split())[:200]}")) from error


def _download(text: str, uri: str, tracking_uri: str, target: Path) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".download-", dir=target.parent))
    try:
        with everywhere(tracking_uri):
            copied = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=str(aside), tracking_uri=tracking_uri
            )
        found = Path(copied)
        if not found.is_dir():
            raise ConfigError(f"task.model.weights {text}: is a file in MLflow; name the folder that it lies in")
        if not target.exists():
            os.replace(holding(found) or found, target)
    except (MlflowException, OSError) as error:
        reason = masked(
            f"task.model.weights {text}: not in MLflow at {tracking_uri}: {' '.join(str(error).split())[:200]}"
        )
        raise ConfigError(reason) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
