"""Population-based search of a proximal schedule: it is learned while the members train.

The run is cut into equal rounds. In each, every member has one multiplier of the mean's proximal step and one of the
precision's (:class:`proxscore.inference.schedules.Schedule`). After a round the worst members take over weights, variational
state and multipliers of one of the best, and vary the multipliers for the rounds to come (Jaderberg et al., 1711.09846).

A member whose round failed, or came to no finite value, is replaced whatever its rank; where no member of a round is left,
the population ends.

A round of a member is a run of its own, which starts from the last checkpoint of the round before: its own or the
one that it takes over. (Ray Tune's scheduler for populations pauses trials and restores them from Tune's checkpoints, of
which Train's runs have none.) Noise is a function of seed and step, so the history of multipliers that led to the best
member, written as one schedule, gives the same run from scratch.
"""

from __future__ import annotations

import math
import random

from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.search import Source
from proxscore.experiments.sweep.settings import PopulationConfig
from proxscore.inference import noise

MULTIPLIERS = ("method.penalty.mean_schedule.multipliers", "method.penalty.precision_schedule.multipliers")
Factors = tuple[float, ...]  # the current ones, in the order of MULTIPLIERS


class Population(Source):
    """Rounds of a population.

    Args:
        objective: validation metric by which members are ranked.
        maximise: whether more of it is better.
        epochs: of the whole run.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: PopulationConfig,
        objective: str,
        maximise: bool,
        *,
        epochs: float,
        seed: int,
        search_seed: int,
    ) -> None:
        self.ledger, self.config, self.objective, self.maximise = ledger, config, objective, maximise
        self.epochs, self.seed, self.search_seed = epochs, seed, search_seed

    def left(self) -> int:
        known = self.ledger.of("search")
        number, member = divmod(len(known), self.config.size)
        if number and not member:
            before = self._round(number - 1)
            if not any(map(self._usable, before)) and not any(map(_unended, before)):
                return 0  # there is nothing to go on from
        return self.config.size * self.config.rounds - len(known)

    def propose(self) -> Trial | None:
        known = self.ledger.of("search")
        number, member = divmod(len(known), self.config.size)
        if number and any(map(_unended, self._round(number - 1))):
            return None
        parent, history = self._next(number, member)
        rest = self.config.rounds - number - 1
        params = {key: [*values, *[values[-1]] * rest] for key, values in zip(MULTIPLIERS, history, strict=True)}
        end = self.epochs * (number + 1) / self.config.rounds
        return Trial(
            len(self.ledger.trials),
            params=params,
            seed=self.seed,
            epochs=end,
            parent=parent,
            member=member,
            round=number,
        )

    def _round(self, number: int) -> list[Trial]:
        return [trial for trial in self.ledger.of("search") if trial.round == number]

    def _next(self, number: int, member: int) -> tuple[int | None, list[list[float]]]:
        """What a member starts a round from, and its multipliers of the rounds up to this one."""
        generator = random.Random(noise.key(self.search_seed, "population", number, member))
        if number == 0:
            spread = math.log(self.config.spread)
            drawn = [1.0 if member == 0 else math.exp(generator.uniform(-spread, spread)) for _ in MULTIPLIERS]
            return None, [[value] for value in drawn]
        ranked = sorted(self._round(number - 1), key=self._rank)
        replaced = max(round(self.config.replaced * self.config.size), 1)
        (own,) = (trial for trial in ranked if trial.member == member)
        varied = own in ranked[-replaced:] or not self._usable(own)
        source = generator.choice([trial for trial in ranked[:replaced] if self._usable(trial)]) if varied else own
        history = [list(source.params[key][:number]) for key in MULTIPLIERS]
        for values in history:
            values.append(values[-1] * (generator.choice(self.config.factors) if varied else 1.0))
        return source.number, history

    def _usable(self, trial: Trial) -> bool:
        """Whether its last checkpoint may be gone on from."""
        return trial.status == "finished" and math.isfinite(trial.value(self.objective))

    def _rank(self, trial: Trial) -> tuple[bool, float, int]:
        """The best first; those that cannot be used last."""
        if not self._usable(trial):
            return True, math.inf, trial.number
        value = trial.value(self.objective)
        return False, -value if self.maximise else value, trial.number


def _unended(trial: Trial) -> bool:
    return trial.status in ("running", "interrupted")
