"""One trial: a run, checkpointed as any other, that is evaluated on validation data alone.

Ray Tune has a process for each trial that runs, and gives it one trial after another. A trial of one worker trains in it
(:mod:`proxscore.experiments.sweep.alone`). That of several is a Ray Train run of its own, sharded as any other, which the
process drives.
"""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="misc,attr-defined"

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from pyarrow.fs import FileSelector, FileType
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from proxscore.config import Config, DivergedError
from proxscore.experiments import runner
from proxscore.experiments.sweep import alone
from proxscore.storage import filesystem
from proxscore.tracking import Recorder
from proxscore.training.ray.reports import FINAL, last_line

if TYPE_CHECKING:
    from proxscore.tasks import Task
    from proxscore.training.worker import Worker

SCORE = "validation/"  # what names of validation metrics begin with
FAILED = "failed"  # in the result of a trial that another attempt cannot mend: why, in a line


def run(settings: dict[str, Any]) -> None:
    """Run a trial in a process of Ray Tune's.

    Args:
        settings: ``config`` (whole), ``number``, ``until`` as of :func:`proxscore.training.loop.fit.fit`, ``start`` (folder
            or URI of a run to begin with), ``cost`` (gradient evaluations of a step, relative to the sweep's), ``run_id`` and
            ``label`` of its MLflow run, and ``home``: the id of the sweep's node.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # That Ray Tune waits for a trial that it has stopped to leave this process, which else is given up: on a busy machine, too.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "30")
    config: Config = settings["config"]
    uri, name = config.tracking.uri, name_of(settings["number"])
    assert uri is not None
    folder = f"{config.training.storage.rstrip('/')}/{name}"
    recorder = Recorder(uri, settings["run_id"], settings["label"], None, kept=f"{folder}/undelivered.json")
    own = {"until": settings["until"], "start": settings["start"], "before": None}
    progress = Progress(settings["until"], settings["cost"])
    try:
        if runner.in_one_process(config):
            own["before"] = folder
            results = alone.run(validated, config, name, recorder, own, progress, settings["home"])
        else:
            reports = ValidationReports(progress)
            results = runner.run(validated, config, name, recorder, own, callbacks=[reports])
    except FINAL as error:  # a result, too, and not the end of this process, which other trials wait for
        results = {FAILED: last_line(error), "diverged": isinstance(error, DivergedError)}
    tune.report(results)


def name_of(number: int) -> str:
    """A trial's run by its number; also its folder."""
    return f"{number:04d}"


def validated(config: Config, task: Task, worker: Worker, settings: dict[str, Any]) -> dict[str, Any]:
    """Train a trial's method, and evaluate it on validation data.

    Args:
        settings: ``until`` and ``start``, as of :func:`run`, and ``before``: of one process, the trial's own folder, where
            checkpoints of several workers lie, if it had them before.
    """
    # Here: they take seconds, which a trial's driver and controller are spared.
    from proxscore.training import evaluation
    from proxscore.training.loop.fit import checkpoint, fit, report_of

    epochs, until = config.training.epochs, settings["until"]
    with newest_checkpoint(settings["before"], settings["start"]) as start:
        fitted = fit(config, config.method, epochs, task, worker, until=until, start=start)
    metrics, _ = evaluation.evaluate(fitted.run, "validation", config.evaluation.draws, fitted.posterior())
    progress = fitted.snapshot.progress
    report = report_of(progress, fitted.length, [], metrics, checkpoint=True)
    worker.report(report, partial(checkpoint.save, snapshot=fitted.snapshot), wait=True)
    return {"final": metrics, "seconds": progress["seconds"]}


@contextmanager
def newest_checkpoint(*runs: str | None) -> Iterator[Path | None]:
    """The folder of the newest checkpoint of the first run that has one, given runs' folders or URIs; none: none has one."""
    found = next((found for run in runs if run is not None and (found := _newest(run)) is not None), None)
    if found is None:
        yield None
        return
    with found.as_directory() as folder:
        yield Path(folder)


def _newest(run: str) -> ray.train.Checkpoint | None:
    """A run's newest checkpoint: Ray Train's, or in a folder of those of one process."""
    files, root = filesystem(run)
    found = []
    for folder in (root, f"{root.rstrip('/')}/checkpoints"):
        for info in files.get_file_info(FileSelector(folder, allow_not_found=True)):
            step = re.match(r"(?:checkpoint_|step-)(\d{9})", info.base_name)
            if step is not None and info.type == FileType.Directory:
                found.append((int(step[1]), info.path))
    return ray.train.Checkpoint(max(found)[1], filesystem=files) if found else None


@dataclass(frozen=True)
class Progress:
    """What Ray Tune is told of a report, for its scheduler.

    Attributes:
        until: epochs at which the trial ends.
        cost: gradient evaluations of a step, relative to the sweep's: trials are compared where they have taken as many.
    """

    until: float
    cost: float

    def of(self, report: dict[str, Any]) -> dict[str, float] | None:
        """Validation metrics on the way, and their epoch; none: it has none, or is of the end, where the trial has a result."""
        if not report["metrics"] or report["epoch"] >= self.until - 1e-6:
            return None
        values = {name.removeprefix(SCORE): value for name, value in report["metrics"].items()}
        return values | {"epoch": report["epoch"] * self.cost}


class ValidationReports(TuneReportCallback):
    """Hands validation metrics on the way from the controller of several workers to Ray Tune."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        values = self.progress.of(metrics[0])
        if values is not None:
            self._training_actor_item_queue.put(values)
