"""One trial: a Ray Train run, sharded and checkpointed as any other, that is evaluated on validation data alone."""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="misc,attr-defined"

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from pyarrow.fs import FileSelector, FileType
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from proxscore.config import Config
from proxscore.experiments import runner
from proxscore.storage import filesystem
from proxscore.tracking import Recorder

if TYPE_CHECKING:
    from proxscore.tasks import Task
    from proxscore.training.worker import Worker

SCORE = "validation/"  # what names of validation metrics begin with


def run(settings: dict[str, Any]) -> None:
    """Drive a trial's run; Ray Tune calls this in a process of its own.

    Args:
        settings: ``config`` (whole), ``number``, ``until`` as of :func:`proxscore.training.loop.fit.fit`, ``start`` (folder
            or URI of a run to begin with), ``cost`` (gradient evaluations of a step, relative to the sweep's), ``run_id`` and
            ``label`` of its MLflow run.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    config: Config = settings["config"]
    uri = config.tracking.uri
    assert uri is not None
    folder = f"{config.training.storage.rstrip('/')}/{name_of(settings['number'])}"
    recorder = Recorder(uri, settings["run_id"], settings["label"], None, kept=f"{folder}/undelivered.json")
    results = runner.run(
        validated,
        config,
        name_of(settings["number"]),
        recorder,
        {key: settings[key] for key in ("until", "start")},
        callbacks=[ValidationReports(settings["until"], settings["cost"])],
    )
    tune.report(results)


def name_of(number: int) -> str:
    """A trial's run by its number; also its folder."""
    return f"{number:04d}"


def validated(config: Config, task: Task, worker: Worker, settings: dict[str, Any]) -> dict[str, Any]:
    """Train a trial's method, and evaluate it on validation data.

    Args:
        settings: ``until`` and ``start``, as of :func:`run`.
    """
    # Here: they take seconds, which a trial's driver and controller are spared.
    from proxscore.training import evaluation
    from proxscore.training.loop.fit import checkpoint, fit, report_of

    epochs, until = config.training.epochs, settings["until"]
    with newest_checkpoint(settings["start"]) as start:
        fitted = fit(config, config.method, epochs, task, worker, until=until, start=start)
    metrics, _ = evaluation.evaluate(fitted.run, "validation", config.evaluation.draws, fitted.posterior())
    progress = fitted.snapshot.progress
    report = report_of(progress, fitted.length, [], metrics, checkpoint=True)
    worker.report(report, partial(checkpoint.save, snapshot=fitted.snapshot), wait=True)
    return {"final": metrics, "seconds": progress["seconds"]}


@contextmanager
def newest_checkpoint(run: str | None) -> Iterator[Path | None]:
    """The folder of a run's newest checkpoint, given the run's folder or URI; none: it has none."""
    found = None
    if run is not None:
        files, root = filesystem(run)
        entries = files.get_file_info(FileSelector(root, allow_not_found=True))
        names = [info.path for info in entries if info.type == FileType.Directory and "checkpoint_" in info.base_name]
        if names:
            found = ray.train.Checkpoint(max(names), filesystem=files)
    if found is None:
        yield None
        return
    with found.as_directory() as folder:
        yield Path(folder)


class ValidationReports(TuneReportCallback):
    """Hands validation metrics on the way to Ray Tune, for its scheduler; what comes at the end is the trial's result.

    Args:
        until: epochs at which the trial ends.
        cost: gradient evaluations of a step, relative to the sweep's: trials are compared where they have taken as many.
    """

    def __init__(self, until: float, cost: float) -> None:
        super().__init__()
        self.until, self.cost = until, cost

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        first = metrics[0]
        if first["metrics"] and first["epoch"] < self.until - 1e-6:
            values = {name.removeprefix(SCORE): value for name, value in first["metrics"].items()}
            self._training_actor_item_queue.put(values | {"epoch": first["epoch"] * self.cost})
