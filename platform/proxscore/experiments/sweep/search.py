"""Where trials come from: Optuna's samplers, a population, or a list; each continues from the ledger.

Ray Tune asks a :class:`Searcher` for one trial after another. Trials that were interrupted come first, then new ones, as many
at a time as the cluster has room for.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.space import Params, Space, active, distribution, ordered, within

MAXIMIZE, MINIMIZE = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
PAUSE = 2.0  # seconds between looks at the cluster


class Source(ABC):
    """Proposes trials, and hears how they end."""

    @abstractmethod
    def propose(self) -> Trial | None:
        """A new trial; none: only when another one has ended."""

    @abstractmethod
    def left(self) -> int:
        """How many it will still propose."""

    def ended(self, trial: Trial) -> None:
        """A trial has ended: finished, stopped or failed."""
        return None


class Sampled(Source):
    """Trials from Optuna: tree-structured Parzen estimators (several objectives too), or at random.

    The first is the configuration as it is given; the sampler learns how it did as far as its values lie in the space.
    What failed is told too, as worse than all that came to a value, so that settings like it are not proposed again and again.

    Args:
        base: the configuration's flat values, for conditions.
        objectives: metric and whether more of it is better.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        base: dict[str, Any],
        objectives: Mapping[str, bool],
        *,
        trials: int,
        random: bool,
        seed: int,
        search_seed: int,
        epochs: float,
    ) -> None:
        self.ledger, self.space, self.base, self.objectives = ledger, space, base, objectives
        self.trials, self.epochs, self.seed = trials, epochs, seed
        self.keys = ordered(space)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = len(ledger.of("search"))
        own_seed = search_seed + 7919 * known  # after an interruption other numbers than those that were drawn before
        sampler: optuna.samplers.BaseSampler
        if random:
            sampler = optuna.samplers.RandomSampler(seed=own_seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=own_seed, n_startup_trials=min(10, max(trials // 3, 2)))
        directions = [MAXIMIZE if more else MINIMIZE for more in objectives.values()]
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self.given = self._given()
        self.open: dict[int, optuna.Trial] = {}
        for trial in ledger.of("search", "finished", "stopped", "failed"):
            self._add(trial)

    def left(self) -> int:
        return max(self.trials - len(self.ledger.of("search")), 0)

    def propose(self) -> Trial | None:
        number, first = len(self.ledger.trials), not self.ledger.of("search")
        if first:
            self.study.enqueue_trial(self.given)
        self.open[number] = asked = self.study.ask()
        keys = list(self.given) if first else self.keys
        params = self._suggest(asked, keys)
        return Trial(number, params={} if first else params, seed=self.seed, epochs=self.epochs)

    def _given(self) -> Params:
        """The configuration's values of the space's keys, as far as they lie in its domains."""
        params: Params = {}
        for key in self.keys:
            value = self.base.get(key)
            if active(self.space[key], self.base, self.base) and within(value, self.space[key]):
                params[key] = value
        return params

    def _suggest(self, asked: optuna.Trial, keys: list[str]) -> Params:
        params: Params = {}
        for key in keys:
            domain = self.space[key]
            if not active(domain, params, self.base):
                continue
            if domain.kind == "choice":
                params[key] = asked.suggest_categorical(key, domain.values)
            elif domain.kind == "randint":
                params[key] = asked.suggest_int(key, *domain.values)
            else:
                params[key] = asked.suggest_float(key, *domain.values, log=domain.kind == "loguniform")
        return params

    def ended(self, trial: Trial) -> None:
        asked = self.open.pop(trial.number, None)
        if asked is None:  # proposed by an earlier attempt
            self._add(trial)
            return
        values, curve = self._outcome(trial)
        for index, value in enumerate(curve):
            asked.report(value, index)
        self.study.tell(asked, values, state=TrialState.COMPLETE if values else TrialState.PRUNED)

    def _add(self, trial: Trial) -> None:
        """Hand the study a trial that it has not asked for."""
        values, curve = self._outcome(trial)
        params = trial.params or self.given
        self.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if values else TrialState.PRUNED,
                params=params,
                distributions={key: distribution(self.space[key]) for key in params},
                values=values,
                intermediate_values=dict(enumerate(curve)),
            )
        )

    def _outcome(self, trial: Trial) -> tuple[list[float] | None, list[float]]:
        """The values of a finished trial, or none; and, of one that was stopped early, those that it came to.

        A trial with neither has failed, or ended without a number: what Optuna's samplers rank below all others.
        """
        values = [trial.value(metric) for metric in self.objectives]
        if trial.status == "finished" and all(map(math.isfinite, values)):
            return values, []
        if trial.status == "stopped":
            first = next(iter(self.objectives))
            return None, [value for row in trial.curve if math.isfinite(value := row.get(first, math.nan))]
        return None, []


class Listed(Source):
    """Given settings, from given seeds."""

    def __init__(self, ledger: Ledger, wanted: list[tuple[Params, int]], epochs: float) -> None:
        self.ledger, self.epochs = ledger, epochs
        known = [(trial.params, trial.seed) for trial in ledger.of("repeat")]
        self.wanted = deque(pair for pair in wanted if pair not in known)

    def left(self) -> int:
        return len(self.wanted)

    def propose(self) -> Trial | None:
        params, seed = self.wanted.popleft()
        return Trial(len(self.ledger.trials), "repeat", params, seed, self.epochs)


class Unremembered:
    """Ray Tune pickles what it is given, to restore it: a sweep is restored from its ledger, and this is not pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return object, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class Queue(Unremembered, Searcher):
    """Ray Tune's side of a source.

    Args:
        begin: called with a trial before it is handed out, new or taken up again.
        slots: trials that the cluster has room for now.
        spent: whether the budget is.
    """

    def __init__(
        self,
        source: Source,
        ledger: Ledger,
        stage: str,
        begin: Callable[[Trial], dict[str, Any]],
        slots: Callable[[], int],
        spent: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.source, self.ledger, self.begin, self.slots, self.spent = source, ledger, begin, slots, spent
        self.again = deque(ledger.of(stage, "interrupted"))
        self.running: set[int] = set()
        self.room, self.looked = 1, 0.0

    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.spent() or (not self.again and not self.source.left())

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's settings; none: not now; FINISHED: there is no other."""
        if self.idle():
            return Searcher.FINISHED  # type: ignore[return-value]
        if time.monotonic() - self.looked > PAUSE:
            self.room, self.looked = self.slots(), time.monotonic()
        if len(self.running) >= self.room:
            return None
        if self.again:
            trial = self.again.popleft()
        else:
            proposed = self.source.propose()
            if proposed is None:
                return None
            trial = self.ledger.add(proposed)
        trial.status, trial.error, trial.diverged = "running", None, False
        self.running.add(trial.number)
        return self.begin(trial)

    def ended(self, trial: Trial) -> None:
        """A trial has ended, for whatever reason."""
        self.running.discard(trial.number)
        if trial.status != "interrupted":
            self.source.ended(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the callback that keeps the ledger calls :meth:`ended`, with more than a result."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has everything."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has everything."""
