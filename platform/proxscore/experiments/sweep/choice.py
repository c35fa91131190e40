"""What of a sweep's trials is worth repeating, which settings win, and whether anything is left to do: by the ledger alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from proxscore import config as configuration
from proxscore.experiments.selection import cost
from proxscore.experiments.sweep.figures import pareto
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.plan import Plan
from proxscore.experiments.sweep.population import Population
from proxscore.experiments.sweep.search import Listed, Sampled, Source
from proxscore.experiments.sweep.space import Params


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
        """The mean of a metric over the seeds; infinite where no run finished."""
        return statistics.fmean(self.values(metric)) if self.trials else math.inf


class Choice:
    """The decisions of a plan, by what its ledger holds."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self.plan, self.ledger = plan, ledger
        self.config, self.tune = plan.config, plan.tune
        self.objective, self.maximise = next(iter(plan.objectives.items()))

    def ended(self) -> bool:
        """Whether no trial is left, to search or to repeat."""
        if any(trial.status in ("running", "interrupted") for trial in self.ledger.of("repeat")):
            return False
        waiting = any(trial.status in ("running", "interrupted") for trial in self.ledger.of("search"))
        searched = self.spent() or (not waiting and not self.source().left())
        return searched and not self.repetitions().left()

    def repetitions(self) -> Listed:
        """The best settings, and those that were given, from every seed, as far as they have not run."""
        wanted = [(params, seed) for _, params in self._chosen() for seed in self.tune.seeds]
        missing = [(params, seed) for params, seed in wanted if not self._runs(params, [seed])]
        return Listed(self.ledger, missing, self.config.training.epochs)

    def candidates(self) -> list[Candidate]:
        """The settings that were repeated from several seeds, the best first."""
        found = [Candidate(label, params, self._runs(params, self.tune.seeds)) for label, params in self._chosen()]
        return sorted(found, key=lambda candidate: (-len(candidate.trials), self.cost(candidate.mean(self.objective))))

    def cost(self, value: float) -> float:
        """The objective as something to be small; what is not finite comes last."""
        return cost(value, self.maximise)

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
        return lambda trial: (bool(front) and trial.number not in front, self.cost(trial.value(self.objective)))

    def _runs(self, params: Params, seeds: list[int]) -> list[Trial]:
        """Finished runs of settings over the whole length, the first of each seed."""
        found: dict[int, Trial] = {}
        for trial in self.ledger.trials:
            whole = trial.status == "finished" and trial.epochs > self.config.training.epochs - 1e-6
            if whole and trial.params == params and trial.seed in seeds and trial.parent is None:
                found.setdefault(trial.seed, trial)
        return [found[seed] for seed in seeds if seed in found]

    def source(self) -> Source:
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

    def spent(self) -> bool:
        """Whether the search has used its time."""
        if self.tune.time_limit is not None and self.ledger.search_seconds > self.tune.time_limit:
            return True
        return self.tune.gpu_hours is not None and self.gpu_hours() > self.tune.gpu_hours

    def gpu_hours(self) -> float:
        """The GPU hours that the search has taken so far."""
        return sum(trial.seconds for trial in self.ledger.of("search")) * self.config.training.workers / 3600
