"""One stage of a sweep on Ray Tune: trials from a queue, a scheduler, and a callback that keeps what they report."""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="attr-defined,call-arg,arg-type"

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from proxscore.config import Config, masked
from proxscore.experiments import runner
from proxscore.experiments.sweep import process
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.live import Live
from proxscore.experiments.sweep.recording import Recording
from proxscore.experiments.sweep.search import Queue, Unremembered
from proxscore.experiments.sweep.trial import FAILED
from proxscore.training.ray import cluster

#: Where drivers of trials on several workers run, which need no CPU worth counting: beside the sweep's own, on every
#: cluster's head.
DRIVER = {"node:__internal_head__": 0.0001}


def run_stage(name: str, config: Config, queue: Queue, scheduler: TrialScheduler, keeper: Keeper) -> None:
    """Run the trials of a queue until there is no other, or its budget is spent.

    A process that trains itself takes what a worker does, is begun again as often, and is kept from trial to trial. One that
    drives workers ends with its trial, and they with it.
    """
    alone = runner.in_one_process(config)
    resources = cluster.resources_per_worker(config) if alone else DRIVER
    with tempfile.TemporaryDirectory(prefix="proxscore-tune-") as folder:
        tune.Tuner(
            tune.with_resources(process.run, tune.PlacementGroupFactory([resources])),
            tune_config=tune.TuneConfig(search_alg=queue, scheduler=scheduler, num_samples=-1, reuse_actors=alone),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                callbacks=[keeper],
                stop=_Budget(queue.spent),
                failure_config=tune.FailureConfig(max_failures=config.training.max_failures if alone else 0),
                verbose=0,
            ),
        ).fit()


def replay(scheduler: AsyncHyperBandScheduler, ledger: Ledger) -> None:
    """Tell a scheduler what the trials of an earlier attempt reported."""
    for known in ledger.of("search", "finished", "stopped"):
        stand_in = _Known(f"known-{known.number}")
        scheduler.on_trial_add(None, stand_in)
        for row in known.curve:
            scheduler.on_trial_result(None, stand_in, row)


@contextmanager
def quiet() -> Iterator[None]:
    """Ray Tune without its own tables, files and signal handler, within the context."""
    ours = {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is for the sweep, which marks its runs
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial's last word is its result, which no scheduler is to see
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors of trials are kept, and shown in a line
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True)
class _Known:
    """Stands for a trial of an earlier attempt in the scheduler."""

    trial_id: str


def _reason(trial: Any) -> tuple[str, bool]:
    """Why a trial of Ray Tune's failed, and whether it diverged.

    The last line of its error, which lies in its local folder at this time.
    """
    try:
        lines = Path(trial.error_file).read_text().splitlines()
    except (OSError, TypeError):
        return "its process died", False
    last = next((line.strip() for line in reversed(lines) if line.strip()), "its process died")
    bare = re.sub(r"^(?:[\w.]+\.)?(?:(?:ConfigError|DivergedError): )?", "", last)  # what is told needs no class's name
    return masked(bare), "DivergedError: " in last


class _Budget(Unremembered, tune.Stopper):
    """Ends a stage when its budget is spent."""

    def __init__(self, spent: Callable[[], bool]) -> None:
        self.spent = spent

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.spent()


class Keeper(Unremembered, tune.Callback):
    """Keeps ledger, MLflow runs and live view by what Ray Tune says of its trials.

    Args:
        metrics: that are kept of what a trial reports.
    """

    def __init__(
        self, ledger: Ledger, recording: Recording, live: Live, queue: Queue, stage: str, metrics: Mapping[str, bool]
    ) -> None:
        self.ledger, self.recording, self.live, self.queue = ledger, recording, live, queue
        self.stage, self.metrics = stage, metrics
        self.running: set[int] = set()
        self.looked = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        passed, self.looked = now - self.looked, now
        for number in self.running:
            self.ledger.trials[number].seconds += passed
        if self.stage == "search":
            self.ledger.search_seconds += passed
        self.live.refresh()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.add(trial.config["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        own = self.ledger.trials[trial.config["number"]]
        if FAILED in result:
            own.error, own.diverged = masked(result[FAILED]), result["diverged"]
        elif "final" in result:
            own.final = dict(result["final"])
        elif "epoch" in result:
            known = set(self.metrics)
            own.report({name: float(value) for name, value in result.items() if name in known or name == "epoch"})
            self.ledger.write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        own = self.ledger.trials[trial.config["number"]]
        if own.error is not None:
            own.status = "failed"
        else:
            own.status = "finished" if own.final else "interrupted" if self.queue.spent() else "stopped"
        self._ended(own)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        own = self.ledger.trials[trial.config["number"]]
        own.status, own.error, own.diverged = "failed", *_reason(trial)
        self._ended(own)

    def _ended(self, own: Trial) -> None:
        self.on_step_end(0, [])
        self.running.discard(own.number)
        self.recording.ended(own)
        self.queue.ended(own)
        self.ledger.write()
        self.live.ended(own)
