"""A sweep in MLflow: one parent run, and a child for each trial, whose statuses are true whatever happens.

A trial that was stopped early, or that the sweep's end interrupted, is KILLED, and the tag ``tune.status`` says which.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proxscore import config as configuration
from proxscore.config import Config, masked
from proxscore.experiments.sweep.ledger import Ledger, Status, Trial
from proxscore.experiments.sweep.plan import Plan
from proxscore.tracking import TrackedRun
from proxscore.tracking.names import run_name
from proxscore.tracking.runs import FAREWELL, PARENT, UNREACHABLE, source_tags

STATUSES: dict[Status, str] = {
    "finished": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
}


class Recording:
    """The runs of a sweep; made by :func:`recorded`."""

    def __init__(self, plan: Plan, ledger: Ledger, parent: TrackedRun) -> None:
        self.plan, self.ledger, self.parent = plan, ledger, parent

    def child(self, trial: Trial) -> TrackedRun:
        """The run of a trial: a new one, or the one that it has."""
        tracking = self.plan.config.tracking
        assert tracking.uri is not None
        return TrackedRun(tracking.uri, tracking.experiment, self.label(trial), trial.run_id or None)

    def label(self, trial: Trial) -> str:
        """The name of a trial's run below its sweep."""
        if trial.stage == "repeat":
            return f"trial {trial.number}, seed {trial.seed}"
        member = "" if trial.member is None else f", member {trial.member}, round {trial.round}"
        return f"trial {trial.number}{member}"

    def begin(self, trial: Trial, config: Config) -> str:
        """A trial begins, or goes on; its run is RUNNING.

        Returns:
            The run's name.
        """
        child = self.child(trial)
        if trial.run_id != child.run_id:  # known before anything else happens: a killed sweep leaves no run behind
            trial.run_id = child.run_id
            self.ledger.write()
        child.client.update_run(child.run_id, status="RUNNING")
        tags = {PARENT: self.parent.run_id, "tune.stage": trial.stage, "tune.status": "running"}
        params = configuration.flatten(config) | {"trial": trial.number}
        child.describe(params, tags | {f"tune.{key}": str(value) for key, value in trial.params.items()})
        training = config.training.model_copy(update={"storage": self.plan.config.training.storage})
        child.text(configuration.dump(config.model_copy(update={"name": None, "training": training})), "config.yaml")
        return self.label(trial)

    def ended(self, trial: Trial) -> None:
        """A trial has ended, or was interrupted."""
        child = self.child(trial)
        child.describe({}, {"tune.status": self._words(trial)})
        if trial.error is not None:
            child.describe({}, {"failure": trial.error[:5000]} | ({"diverged": "true"} if trial.diverged else {}))
        finals = {f"validation_final/{name}": value for name, value in trial.final.items() if math.isfinite(value)}
        child.metrics(finals | {"seconds": trial.seconds})
        child.client.set_terminated(child.run_id, status=STATUSES[trial.status])

    def interrupted(self, trials: list[Trial]) -> None:
        """Say of trials that the sweep's end interrupted them, if the server can be told within seconds."""
        client = self.parent.client
        if trials:
            client.hurry(FAREWELL)
        try:
            for trial in trials:
                client.set_tag(trial.run_id, "tune.status", self._words(trial))
                client.set_terminated(trial.run_id, status=STATUSES[trial.status])
        except UNREACHABLE as error:
            why = masked(" ".join(str(error).split())[:200])
            print(f"trials are not marked {STATUSES['interrupted']}: {why}", file=sys.stderr, flush=True)

    @staticmethod
    def _words(trial: Trial) -> str:
        where = f" at epoch {trial.epoch:.3g} of {trial.epochs:g}"
        return trial.outcome + (where if trial.status in ("stopped", "interrupted") else "")


@contextmanager
def recorded(plan: Plan, ledger: Ledger) -> Iterator[Recording]:
    """The parent run, RUNNING within the context; trials that are running at its end are interrupted."""
    config = plan.config
    assert config.tracking.uri is not None
    assert config.name is not None
    name = run_name(f"sweep of {config.method.kind}", config)
    parent = TrackedRun(config.tracking.uri, config.tracking.experiment, name, ledger.run_id)
    ledger.run_id = parent.run_id
    ledger.write()
    with parent.running():
        tune = {f"tune.{key}": value for key, value in plan.tune.model_dump(mode="json").items() if key != "space"}
        space = {f"tune.space.{key}": json.dumps(domain.written()) for key, domain in plan.space.items()}
        common: dict[str, Any] = configuration.flatten(config)
        parent.describe(common | tune | space, source_tags() | {"tune": "sweep", "name": config.name})
        recording = Recording(plan, ledger, parent)
        try:
            yield recording
        finally:
            running = [trial for trial in ledger.trials if trial.status == "running"]
            for trial in running:
                trial.status = "interrupted"
            ledger.write()
            recording.interrupted(running)
