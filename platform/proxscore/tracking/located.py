"""Where a posterior lies: a folder, or what MLflow has of it, as a local copy."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxscore import config as configuration
from proxscore.config import ConfigError, expanded, masked
from proxscore.tracking.runs import tracking_uri

POSTERIOR = "posterior.json"
INSIDE = "artifacts/posterior"  # of a model
_RUN = r"(?:runs:/+)?([0-9a-f]{32})(?:/(.+))?"
_VERSION, _ALIAS, _ID = r"models:/+([^/@]+)/(.+)", r"models:/+([^/@]+)@(.+)", r"models:/+(m-[0-9a-f]{32})"


def run_id_of(source: str) -> str | None:
    """The MLflow run that a source names; none: it is a folder, or a model."""
    found = re.fullmatch(_RUN, source)
    if found is None and source.startswith("runs:/"):
        return source.removeprefix("runs:/").strip("/")
    return None if found is None or Path(source).exists() else found[1]


def in_mlflow(source: str) -> bool:
    """Whether a source names a run or a model of MLflow."""
    return source.startswith("models:") or run_id_of(source) is not None


def located(source: str, overrides: Sequence[str] = ()) -> Path:
    """The folder with the files of a posterior.

    Args:
        source: that folder, that of a run of ours or of an MLflow model which holds it, or a URI: ``runs:/ID``,
            ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``models:/MODEL_ID``.
        overrides: of a configuration; those of ``tracking`` say which MLflow.

    Raises:
        ConfigError: nothing is there; the nearest names, or those that there are, are named.
    """
    if in_mlflow(source):
        return _downloaded(source, overrides)
    folder = expanded(source)
    if not folder.exists() and "://" in source:
        raise ConfigError(f"{source}: give a folder, runs:/ID, models:/NAME/VERSION or models:/NAME@ALIAS")
    if (found := holding(folder)) is not None:
        return found
    finished = folder / "finished.json"  # what a run leaves beside its checkpoints
    if finished.is_file():
        try:
            place = folder / str(json.loads(finished.read_text())["checkpoint"]) / "posterior"
            nested = folder / "checkpoints" / place.parent.name / "posterior"
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{finished}: is damaged ({error})") from error
        for each in (place, nested):
            if (each / POSTERIOR).is_file():
                return each
    raise ConfigError(f"{folder}: no posterior there ({POSTERIOR} is missing)")


def for_workers(source: str, folder: Path, overrides: Sequence[str], uri: str) -> tuple[str, tuple[str, ...]]:
    """How processes on other machines find a posterior: in MLflow, where this process found it, or by its whole path.

    Args:
        source: as :func:`located` takes it.
        folder: what it gave.
        overrides: of a configuration.
        uri: of the tracking server or database.
    """
    own = [each for each in overrides if not each.startswith("tracking.uri=")]
    return source if in_mlflow(source) else str(folder.absolute()), (*own, f"tracking.uri={uri}")


def holding(folder: Path) -> Path | None:
    """The folder with a posterior's files: this one, or the one within it that a run or a model keeps it in; none: neither."""
    for inside in (folder, folder / "posterior", folder / INSIDE):
        if (inside / POSTERIOR).is_file():
            return inside
    return None


def model_of(run: Any) -> str | None:
    """The URI of the model that a run logged last; none: it logged none."""
    models = [] if run.outputs is None else [each.model_id for each in run.outputs.model_outputs]
    return f"models:/{models[-1]}" if models else None


def _downloaded(source: str, overrides: Sequence[str]) -> Path:
    from mlflow.exceptions import MlflowException

    tracking = configuration.load(overrides=[o for o in overrides if o.startswith("tracking.")]).tracking
    uri = tracking_uri(tracking)
    try:
        if (run_id := run_id_of(source)) is not None:
            found = _of_run(source, run_id, uri)
        else:
            found = Path(_copy(_model_uri(source, uri), uri))
    except ConfigError:
        raise
    except (MlflowException, OSError, ValueError) as error:
        raise ConfigError(masked(f"{source}: not in MLflow at {uri}: {' '.join(str(error).split())[:200]}")) from error
    if (folder := holding(found)) is not None:
        return folder
    raise ConfigError(masked(f"{source} in MLflow at {uri} holds no posterior ({POSTERIOR} is missing)"))


def _of_run(source: str, run_id: str, uri: str) -> Path:
    """What a run left: the model that it logged, or the folder ``posterior`` of one of an earlier version."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    named = re.fullmatch(_RUN, source)
    client = MlflowClient(uri)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ConfigError(masked(f"MLflow run {run_id} at {uri}: {' '.join(str(error).split())[:200]}")) from error
    path = named[2] if named is not None else None
    if (model := model_of(run)) is not None and path in (None, "model", "posterior"):
        return Path(_copy(model, uri))
    if path is None and not any(each.path == "posterior" for each in client.list_artifacts(run_id)):
        raise ConfigError(masked(f"MLflow run {run_id} at {uri} has no posterior: {_state(run)}"))
    return Path(_copy(f"runs:/{run_id}/{path or 'posterior'}", uri))


def _state(run: Any) -> str:
    return f"the run is {run.info.status}" if run.info.status != "FINISHED" else "it logged no model"


def _model_uri(source: str, uri: str) -> str:
    """A model's URI as it is downloaded; an alias or a version is looked up.

    Raises:
        ConfigError: there is no such model, version or alias.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if re.fullmatch(_ID, source):
        return source
    client = MlflowClient(uri)
    alias, version = re.fullmatch(_ALIAS, source), re.fullmatch(_VERSION, source)
    found = alias or version
    if found is None:
        raise ConfigError(f"{source}: expected models:/NAME/VERSION, models:/NAME@ALIAS or models:/MODEL_ID")
    name, wanted = found[1], found[2]
    try:
        model = client.get_registered_model(name)
    except MlflowException:
        names = [each.name for each in client.search_registered_models(max_results=1000)]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        hint = f"nearest: {', '.join(near)}" if near else "no model is registered there"
        raise ConfigError(masked(f"{source}: MLflow at {uri} has no registered model {name!r}; {hint}")) from None
    if alias is not None:
        if wanted not in model.aliases:
            has = ", ".join(f"{each}" for each in sorted(model.aliases)) or "none"
            raise ConfigError(f"{source}: model {name} has no alias {wanted!r}; its aliases: {has}")
        return f"models:/{name}/{client.get_model_version_by_alias(name, wanted).version}"
    versions = sorted(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
    if wanted.lower() == "latest" and versions:
        return f"models:/{name}/{versions[-1]}"
    if not wanted.isdigit() or int(wanted) not in versions:
        shown = ", ".join(map(str, versions[-10:])) or "none"
        raise ConfigError(f"{source}: model {name} has no version {wanted!r}; its versions: {shown}")
    return f"models:/{name}/{wanted}"


def _copy(artifact_uri: str, uri: str) -> str:
    import mlflow

    with everywhere(uri):
        found: str = mlflow.artifacts.download_artifacts(artifact_uri=artifact_uri, tracking_uri=uri)
    return found


@contextmanager
def everywhere(uri: str) -> Iterator[None]:
    """Within the context, this is the tracking server of the whole process: MLflow looks up ``models:/`` there alone.

    Afterwards all is as before. What MLflow answers for an address that nobody set is not written back: it would be set then,
    and outlive the environment's.
    """
    import mlflow
    from mlflow.tracking._model_registry import utils as registry
    from mlflow.tracking._tracking_service import utils as service

    before: tuple[Any, Any] = service._tracking_uri, registry._registry_uri
    environment = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
