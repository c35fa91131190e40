"""A sweep: search, repetitions of the best from other seeds, the winner's test.

Ray Tune runs every stage; the ledger keeps what it left. The objective is that of validation data throughout; the test split is
looked at once, for the settings that win.
"""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="attr-defined,call-arg,arg-type"

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.tracking import Recorder
from proxscore.training import cluster, launch
from proxscore.tuning import trial as trials
from proxscore.tuning.figures import pareto
from proxscore.tuning.ledger import Ledger, Trial
from proxscore.tuning.live import Live
from proxscore.tuning.plan import Plan
from proxscore.tuning.population import Population
from proxscore.tuning.recording import Recording
from proxscore.tuning.search import Listed, Queue, Sampled, Source
from proxscore.tuning.space import Params, applied, relative_cost
from proxscore.tuning.stage import Keeper, replay, run_stage


@dataclass(frozen=True)
class Candidate:
    """Settings, and what their runs came to.

    Attributes:
        label: ``trial 7``, or ``as given``.
        params: by dotted key.
        trials: finished runs of it, one for each seed.
    """

    label: str
    params: Params
    trials: list[Trial]

    def values(self, metric: str) -> list[float]:
        return [trial.value(metric) for trial in self.trials]

    def mean(self, metric: str) -> float:
        """Over seeds."""
        return statistics.fmean(self.values(metric)) if self.trials else math.inf


class Sweep:
    """All stages of a plan, which go on from the ledger."""

    def __init__(self, plan: Plan, ledger: Ledger, recording: Recording, live: Live) -> None:
        self.plan, self.ledger, self.recording, self.live = plan, ledger, recording, live
        self.config, self.tune = plan.config, plan.tune
        self.objective, self.maximise = next(iter(plan.objectives.items()))

    def search(self) -> None:
        """The first stage, as far as its budget goes."""
        self._stage("search", self._source(), self._scheduler(), self._spent)

    def repeat(self) -> list[Candidate]:
        """The second: the best settings, and those that were given, from every seed.

        Returns:
            Candidates, the best first.
        """
        wanted = [(params, seed) for _, params in self._chosen() for seed in self.tune.seeds]
        missing = [(params, seed) for params, seed in wanted if not self._runs(params, [seed])]
        self._stage("repeat", Listed(self.ledger, missing, self.config.training.epochs), FIFOScheduler(), lambda: False)
        return self.candidates()

    def candidates(self) -> list[Candidate]:
        """What was repeated, the best first."""
        found = [Candidate(label, params, self._runs(params, self.tune.seeds)) for label, params in self._chosen()]
        return sorted(found, key=lambda candidate: (-len(candidate.trials), self._cost(candidate.mean(self.objective))))

    def _cost(self, value: float) -> float:
        """The objective as something to be small; what is not finite comes last."""
        if not math.isfinite(value):
            return math.inf
        return -value if self.maximise else value

    def _chosen(self) -> list[tuple[str, Params]]:
        """Settings that are worth repeating: the best of the search, and those that were given."""
        whole = [
            trial
            for trial in self.ledger.of("search", "finished")
            if trial.epochs > self.config.training.epochs - 1e-6 and math.isfinite(trial.value(self.objective))
        ]
        best = sorted(whole, key=self._rank(whole))[: self.tune.top]
        chosen = [(f"trial {trial.number}", trial.params) for trial in best if trial.params]
        return [*chosen, ("as given", {})]

    def _rank(self, whole: list[Trial]) -> Callable[[Trial], tuple[bool, float]]:
        """The best first; of two objectives, those that no other trial beats in both, by the first objective."""
        signs = {name: -1 if more else 1 for name, more in self.plan.objectives.items()}
        front: set[int] = set()
        if len(signs) > 1:
            (first, one), (second, other) = signs.items()
            found = pareto([(one * trial.value(first), other * trial.value(second)) for trial in whole])
            front = {whole[index].number for index in found}
        return lambda trial: (bool(front) and trial.number not in front, self._cost(trial.value(self.objective)))

    def _runs(self, params: Params, seeds: list[int]) -> list[Trial]:
        """Finished runs of settings over the whole length, the first of each seed."""
        found: dict[int, Trial] = {}
        for trial in self.ledger.trials:
            whole = trial.status == "finished" and trial.epochs > self.config.training.epochs - 1e-6
            if whole and trial.params == params and trial.seed in seeds and trial.parent is None:
                found.setdefault(trial.seed, trial)
        return [found[seed] for seed in seeds if seed in found]

    # ------------------------------------------------------------ one stage

    def _source(self) -> Source:
        seed, epochs = self.config.seed, self.config.training.epochs
        if self.tune.search == "population":
            return Population(
                self.ledger,
                self.tune.population,
                self.objective,
                self.maximise,
                epochs=epochs,
                seed=seed,
                search_seed=self.tune.seed,
            )
        return Sampled(
            self.ledger,
            self.plan.space,
            configuration.flatten(self.config),
            self.plan.objectives,
            trials=self.tune.trials,
            random=self.tune.search == "random",
            seed=seed,
            search_seed=self.tune.seed,
            epochs=epochs,
        )

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
                queue,
                scheduler,
                Keeper(self.ledger, self.recording, self.live, queue, stage, self.plan.task.objectives),
            )
        finally:
            self.ledger.write()
            self.live.refresh(force=True)

    def _begin(self, trial: Trial) -> dict[str, Any]:
        """What a trial's driver is given; its MLflow run is there then."""
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
        }

    def trial_config(self, trial: Trial) -> Config:
        """The whole configuration of a trial's run."""
        changed = applied(self.config, trial.params)
        training = changed.training.model_copy(update={"storage": self.plan.trials_folder})
        return changed.model_copy(update={"training": training, "seed": trial.seed, "baseline": None})

    def slots(self) -> int:
        """Trials that the cluster holds; one more where its autoscaler may add nodes for it."""
        training = self.config.training
        each = {"CPU": training.workers * training.cpus_per_worker}
        if cluster.use_gpu(self.config):
            each["GPU"] = float(training.workers)
        now, later = (
            min(int(held.get(name, 0) / amount + 1e-9) for name, amount in each.items())
            for held in (ray.cluster_resources(), cluster.capacity())
        )
        return max(1, min(now + (later > now), self.tune.concurrent or later))

    def _spent(self) -> bool:
        """Whether the search has used its time."""
        if self.tune.time_limit is not None and self.ledger.search_seconds > self.tune.time_limit:
            return True
        return self.tune.gpu_hours is not None and self.gpu_hours() > self.tune.gpu_hours

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
                results, checkpoint = cluster.train_on_ray(
                    changed, changed.method, changed.training.epochs, trials.name_of(trial.number), recorder
                )
                launch.keep(child, results, cluster.local(checkpoint))
            test = results["test"].get("posterior") or results["test"]["point"]
            for name, value in test.items():
                found.setdefault(name, []).append(value)
        return found

    def gpu_hours(self) -> float:
        """Of the search so far."""
        return sum(trial.seconds for trial in self.ledger.of("search")) * self.config.training.workers / 3600
