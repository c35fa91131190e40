"""The posterior of a finished run as an MLflow model of its own: a LoggedModel, whose metrics are tied to it."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from mlflow.entities import LoggedModelOutput
from mlflow.models.model import Model

from proxscore.config import ConfigError
from proxscore.posterior.shards import DESCRIPTION_FILE
from proxscore.predictor import pyfunc_code
from proxscore.predictor.described import configuration_of
from proxscore.tracking.runs import TrackedRun, source_tags

NAME = "model"


def log_model(tracked: TrackedRun, folder: Path, tags: Mapping[str, str]) -> str | None:
    """Log a posterior as a model of a run: its files, signature, input example and parameters.

    The model's files are the posterior's (safetensors and JSON) and a few lines of code that open them: nothing is pickled.

    Args:
        folder: of the posterior.
        tags: of the model.

    Returns:
        The model's id; none for a task without a predictor.
    """
    import mlflow.pyfunc  # takes seconds

    from proxscore.predictor.pyfunc import ARTIFACT, signature

    header = json.loads((folder / DESCRIPTION_FILE).read_text())
    where = str(folder / DESCRIPTION_FILE)
    try:
        config = configuration_of(header, [], where)
        takes, example = config.task.example_input(header, where)
    except ConfigError:  # a network that a description may not name, or a task of another package: it has no predictor
        return None
    validation = header.get("validation") or {}
    client = tracked.client
    params = {"task": config.task.kind, "network": config.task.network, "family": header.get("family", "")}
    params |= {key: str(validation[key]) for key in ("draws", "seed") if key in validation}
    logged = client.create_logged_model(
        tracked.experiment_id,
        name=NAME,
        source_run_id=tracked.run_id,
        tags=source_tags() | dict(tags),
        params={key: str(value) for key, value in params.items()},
        model_type="proxscore",
    )
    logging.getLogger("mlflow.models.model").setLevel(logging.WARNING)  # says that it looks at the input example
    aside = Path(tempfile.mkdtemp(prefix="proxscore-model-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about type hints of predict, which takes any table
            mlflow.pyfunc.save_model(
                aside / NAME,
                python_model=pyfunc_code.__file__,
                artifacts={ARTIFACT: str(folder)},
                signature=signature(takes, [str(name) for name in example.columns], validation),
                pip_requirements=[f"proxscore=={version('proxscore')}"],
                input_example=example,
                mlflow_model=Model(run_id=tracked.run_id, model_id=logged.model_id),
            )
        client.log_model_artifacts(logged.model_id, str(aside / NAME))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(tracked.run_id, [LoggedModelOutput(logged.model_id, 0)])
    return str(logged.model_id)
