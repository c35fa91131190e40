"""A sweep: search, repetitions of the best from other seeds, the winner's test.

Ray Tune runs every stage; the ledger keeps what it left. The objective is that of validation data throughout; the test split is
looked at once, for the settings that win.
"""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="attr-defined,call-arg,arg-type"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from proxscore.config import Config
from proxscore.experiments import runner
from proxscore.experiments.sweep import tested
from proxscore.experiments.sweep import trial as trials
from proxscore.experiments.sweep.choice import Candidate, Choice
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.live import Live
from proxscore.experiments.sweep.plan import Plan
from proxscore.experiments.sweep.recording import Recording
from proxscore.experiments.sweep.search import Queue, Source
from proxscore.experiments.sweep.space import applied, relative_cost
from proxscore.experiments.sweep.stage import Keeper, replay, run_stage
from proxscore.tracking import Recorder
from proxscore.training.results import record_results


class Sweep(Choice):
    """All stages of a plan, which go on from the ledger."""

    def __init__(self, plan: Plan, ledger: Ledger, recording: Recording, live: Live) -> None:
        super().__init__(plan, ledger)
        self.recording, self.live = recording, live

    def search(self) -> None:
        """The first stage, as far as its budget goes."""
        self._stage("search", self.source(), self._scheduler(), self.spent)

    def repeat(self) -> list[Candidate]:
        """The second: the best settings, and those that were given, from every seed.

        Returns:
            Candidates, the best first.
        """
        self._stage("repeat", self.repetitions(), FIFOScheduler(), lambda: False)
        return self.candidates()

    # ------------------------------------------------------------ one stage

    def _scheduler(self) -> TrialScheduler:
        """Asynchronous successive halving, with what the trials of an earlier attempt reported."""
        if self.plan.scheduler == "none":
            return FIFOScheduler()
        epochs = self.config.training.epochs
        scheduler = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=self.objective,
            mode="max" if self.maximise else "min",
            max_t=epochs,
            grace_period=min(self.tune.grace, epochs),
            reduction_factor=self.tune.reduction,
            stop_last_trials=False,
        )
        replay(scheduler, self.ledger)
        return scheduler

    def _stage(self, stage: str, source: Source, scheduler: TrialScheduler, spent: Callable[[], bool]) -> None:
        queue = Queue(source, self.ledger, stage, self._begin, self.slots, spent)
        if queue.idle():
            return
        self.live.stage(stage, len(self.ledger.of(stage)) + source.left())
        try:
            run_stage(
                stage,
                self.config,
                queue,
                scheduler,
                Keeper(self.ledger, self.recording, self.live, queue, stage, self.plan.task.evaluator.objectives),
            )
        finally:
            self.ledger.write()
            self.live.refresh(force=True)

    def _begin(self, trial: Trial) -> dict[str, Any]:
        """Make a trial's MLflow run, and return the settings that its driver is given."""
        changed = self.trial_config(trial)
        cost = relative_cost(changed, self.config)
        label = self.recording.begin(trial, changed)
        start = None if trial.parent is None else f"{changed.training.storage}/{trials.name_of(trial.parent)}"
        return {
            "number": trial.number,
            "config": changed,
            "until": trial.epochs / cost,
            "cost": cost,
            "start": start,
            "run_id": trial.run_id,
            "label": label,
            "home": ray.get_runtime_context().get_node_id(),
        }

    def trial_config(self, trial: Trial) -> Config:
        """The whole configuration of a trial's run."""
        changed = applied(self.config, trial.params)
        training = changed.training.model_copy(update={"storage": self.plan.trials_folder})
        return changed.model_copy(update={"training": training, "seed": trial.seed, "baseline": None})

    def slots(self) -> int:
        """Trials that the cluster holds."""
        return runner.slots(self.config, self.tune.concurrent)

    def test(self, winner: Candidate) -> dict[str, list[float]]:
        """The third stage: the winner's runs go on from their last checkpoints, where they end, to the test split.

        Returns:
            Test metrics by name, a value for each seed.
        """
        found: dict[str, list[float]] = {}
        for trial in winner.trials:
            changed = self.trial_config(trial)
            child = self.recording.child(trial)
            assert changed.tracking.uri is not None
            with child.running():
                recorder = Recorder(changed.tracking.uri, child.run_id, self.recording.label(trial), None)
                results, folder = tested.run(changed, trials.name_of(trial.number), recorder)
                record_results(child, results, folder, changed.tracking.log_model)
            test = results["test"].get("posterior") or results["test"]["point"]
            for name, value in test.items():
                found.setdefault(name, []).append(value)
        return found
