"""Artifacts that earlier runs left in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxscore import config as configuration
from proxscore.config import ConfigError, masked
from proxscore.tracking.runs import tracking_uri


def download(run_id: str, path: str, overrides: Sequence[str]) -> Path:
    """An artifact of a run, a file or a folder, as a local copy.

    Args:
        overrides: of a configuration; those of ``tracking`` say where to look.

    Raises:
        ConfigError: there is no such run, or it has no such artifact.
    """
    import mlflow  # here: it takes seconds
    from mlflow.exceptions import MlflowException

    tracking = configuration.load(overrides=[o for o in overrides if o.startswith("tracking.")]).tracking
    uri = tracking_uri(tracking)
    try:
        found = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, tracking_uri=uri)
    except (MlflowException, OSError) as error:
        reason = masked(f"MLflow run {run_id} at {uri}: no {path}: {' '.join(str(error).split())[:200]}")
        raise ConfigError(reason) from error
    return Path(found)
