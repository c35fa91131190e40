"""The training loop: reads from top to bottom, and knows the inside of neither task nor method."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from proxscore.config import Config, MethodSection
from proxscore.methods import Method, RunLength, Setup, build_method
from proxscore.posterior import Posterior
from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.convergence import Verdict
from proxscore.posterior.diagnostics import Losses
from proxscore.tasks import Task
from proxscore.training import evaluation
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.micro_batches import Batch
from proxscore.training.data.streamed import RayTrainingData
from proxscore.training.initial_network import InitialNetwork
from proxscore.training.loop import checkpoint, divergence
from proxscore.training.loop.observer import Observer
from proxscore.training.loop.resume import resume, return_to_best
from proxscore.training.loop.run_length import batches, milestones, run_length, step_at
from proxscore.training.loop.step import Outcome, first_losses, train_step
from proxscore.training.run import Run, prepare
from proxscore.training.worker import Worker

#: Steps whose outcome is read only when the next ones have been launched, by type of device: an accelerator (1) would have
#: nothing to do while the host reads.
STEPS_AHEAD = {"cpu": 0}
#: Whether a checkpoint is written while training goes on, by type of device: from an accelerator (True) it is copied to the
#: host anyway; beside a CPU's own tensors a copy would take their memory again.
WRITTEN_BEHIND = {"cpu": False}
NO_SCORE = 1e9  # of a checkpoint before any validation: finite, as Ray keeps scores in JSON


@dataclass(frozen=True)
class Fitted:
    """A network and a method after the run's last step, before they are evaluated.

    Attributes:
        run: with the trained module.
        method: its optimizer.
        length: of the run.
        snapshot: what a checkpoint holds.
        seconds: of the steps and of what the method did after the last.
        verdict: on the posterior's convergence, if the method has one.
        lowest: validation ``nll`` where it was the lowest and the ``epoch`` of that, the NLL at the ``end``, and whether the
            run is ``stopped`` there (1 or 0).
    """

    run: Run
    method: Method
    length: RunLength
    snapshot: checkpoint.Snapshot
    seconds: float
    verdict: Verdict | None
    lowest: dict[str, float]

    def posterior(self) -> Posterior:
        """The posterior of the module's weights, with what training found of its convergence."""
        description = {} if self.verdict is None else {VERDICT: self.verdict.as_json()}
        return Posterior.of(self.run.module, self.method, description)


def fit(
    config: Config,
    settings: MethodSection,
    epochs: float,
    task: Task,
    worker: Worker,
    *,
    until: float | None = None,
    start: Path | None = None,
    built: InitialNetwork | None = None,
) -> Fitted:
    """Take the steps of a method on a task, from the worker's last checkpoint on, if there is one.

    Args:
        settings: of the method.
        epochs: of the whole run: what schedules follow.
        until: epochs after which to end; none: at the end of the run.
        start: folder of a checkpoint, of any run, to begin with where the worker has none.
        built: the network, where the start-up checks have built it.
    """
    run = prepare(config, task, worker, built)
    data = run.data
    assert data is not None
    length = run_length(data.steps_per_epoch, epochs, task)
    setup = Setup(run.module, length, config.seed, partial(first_losses, run), worker.draw_mesh)
    method = build_method(settings, setup)
    progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "score": NO_SCORE, "lanes": 0, "skipped_rows": 0}
    progress |= {"start": None, "best_step": 0, "best_score": NO_SCORE, "stopped": False}
    snapshot = checkpoint.Snapshot(run.module, method, progress)
    stop = length.total_steps if until is None else step_at(until / epochs, length)
    if not resume(snapshot, worker) and start is not None:
        checkpoint.load(start, snapshot)
    losses: Losses | None = None
    validate_at = milestones(config.training.validate_every, length)
    save_at = milestones(config.training.checkpoint_every, length)
    records: list[dict[str, float]] = []
    reported = time.perf_counter()
    started = reported - progress["seconds"]
    observer = Observer(worker.device, config.training.profile)
    section = section_of(settings, config, worker)
    written = partial(
        checkpoint.stage if WRITTEN_BEHIND.get(worker.device.type, True) else checkpoint.save, snapshot=snapshot
    )
    # A report after this step, on all ranks: then the method's statistics are taken.
    asked = config.tracking.interval == 0
    outcomes: deque[tuple[int, Outcome]] = deque()
    ahead = STEPS_AHEAD.get(worker.device.type, 1)
    steps = batches(data, progress, length, worker.data_world, stop)
    for micro_batches, size in observer.timed_iterator(steps):
        step = progress["step"]
        last = step + 1 == stop
        validate, save = step + 1 in validate_at or last, step + 1 in save_at and not last
        method.monitor, method.statistics = asked or validate or save, {}
        run.module.train()
        due = float(time.perf_counter() - reported >= config.tracking.interval)
        if worker.busy():
            due = -float(worker.world)
        explained = partial(divergence.explained, step + 1, length.total_steps, settings, section, run.module)
        with explained():
            outcomes.append((step + 1, train_step(run, method, micro_batches, size, step, due, observer)))
        progress |= {"step": step + 1, "seconds": time.perf_counter() - started}
        asked, report = False, asked or validate or save
        while len(outcomes) > (0 if report else ahead):
            record, asked = noted(*outcomes.popleft(), progress)
            records.append(record)
        if report:
            notice = worker.leaving() and not last
            save |= notice
            metrics: dict[str, float] = {}
            if validate:
                with explained():
                    metrics, losses = validated(run, method, progress)
                note_verdict(method.verdict(losses, length.data_size), records[-1])
                note_score(metrics, progress)
                if progress["best_step"] == step + 1:
                    save |= bool(config.training.early_stopping) and not last
            payload = report_of(progress, length, records, metrics, checkpoint=save)
            if config.training.early_stopping and not validate:
                payload["score"] = NO_SCORE  # that of an earlier state would push out its checkpoint
            payload["resources"] = observer.summary()
            with observer.timed("checkpoint" if save else "report"):
                worker.report(payload, written if save else None, wait=notice)
            records, reported = [], time.perf_counter()
            asked = asked and config.tracking.interval == 0

    early = config.training.early_stopping and until is None and not progress["stopped"]
    if early and 0 < progress["best_step"] < stop:  # zero: no validation had a number
        return_to_best(snapshot, worker)
        _, losses = validated(run, method, progress)
    lowest = {"nll": progress["best_score"], "epoch": progress["best_step"] / length.steps_per_epoch}
    lowest |= {"end": progress["score"], "stopped": float(progress["stopped"])}
    ended = time.perf_counter()
    method.conclude(run.module, task.likelihood, partial(training_rows, data), length.data_size)
    seconds = progress["seconds"] + time.perf_counter() - ended
    return Fitted(run, method, length, snapshot, seconds, method.verdict(losses, length.data_size), lowest)


def noted(step: int, outcome: Outcome, progress: dict[str, Any]) -> tuple[dict[str, float], bool]:
    """Read what step ``step`` found, from one on: its record, and whether a report is due. Progress holds what adds up."""
    record, due = outcome.read()
    if "data/skipped_rows" in record:  # of the step; recorded is their number so far
        progress["skipped_rows"] += record["data/skipped_rows"]
        record["data/skipped_rows"] = progress["skipped_rows"]
    if step == 1:
        progress["start"] = record["train/nll"]
    return {"step": step} | record, due


def validated(run: Run, method: Method, progress: dict[str, Any]) -> tuple[dict[str, float], Losses | None]:
    """Validate the network in training: its metrics, and the losses that convergence is judged by, if the method is."""
    metrics, losses = evaluation.validate(run, method)
    return metrics, None if losses is None else replace(losses, start=progress["start"])


def note_verdict(verdict: Verdict | None, record: dict[str, float]) -> None:
    """Put the numbers behind a verdict into the record of its step."""
    if verdict is not None:
        record |= {f"verdict/{name}": value for name, value in verdict.metrics.items()}


def note_score(metrics: dict[str, float], progress: dict[str, Any]) -> None:
    """Put the score of a validation into the progress, and whether it is the best so far."""
    nll = metrics.get("nll", math.inf)  # undefined where no target is observed
    progress["score"] = nll if math.isfinite(nll) else NO_SCORE
    if progress["score"] < progress["best_score"]:
        progress |= {"best_step": progress["step"], "best_score": progress["score"]}


def section_of(settings: MethodSection, config: Config, worker: Worker) -> str:
    """Name the section of the configuration that holds the settings of a method that is fitted."""
    return "baseline" if settings is config.baseline else worker.method_section


def training_rows(data: TrainingData | RayTrainingData) -> Iterator[Batch]:
    """Yield this rank's training rows once, in batches without padding."""
    for micro_batches, _ in data.epoch(0):
        for inputs, targets in micro_batches:
            if len(targets):
                yield inputs[: len(targets)], targets


def report_of(
    progress: dict[str, Any],
    length: RunLength,
    records: list[dict[str, float]],
    metrics: dict[str, float],
    *,
    checkpoint: bool,
) -> dict[str, Any]:
    """Make the message in which a rank tells the driver how far it is."""
    return {
        "step": progress["step"],
        "total_steps": length.total_steps,
        "epoch": progress["step"] / length.steps_per_epoch,
        "seconds": progress["seconds"],
        "records": records,
        "resources": {},
        "checkpoint": checkpoint,
        "score": progress["score"],  # the last validation NLL: what checkpoints are kept by
        "metrics": {f"validation/{name}": value for name, value in metrics.items()},
    }
