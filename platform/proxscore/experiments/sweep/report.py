"""What a sweep leaves for people: a leaderboard, figures, and the winner's configuration."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.experiments.sweep import figures
from proxscore.experiments.sweep.choice import Candidate
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.live import short
from proxscore.experiments.sweep.plan import Plan
from proxscore.experiments.sweep.population import MULTIPLIERS
from proxscore.experiments.sweep.space import Domain, Space, applied
from proxscore.experiments.tables import NONE
from proxscore.experiments.tables import markdown as tabular
from proxscore.methods import RunLength


def leaderboard(plan: Plan, candidates: Sequence[Candidate]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what was repeated, the best first: means over seeds, standard deviations behind them."""
    header = ["settings", *(f"validation {name}" for name in plan.objectives), "seeds", "values"]
    rows = []
    for candidate in candidates:
        cells = [spread(candidate.values(name)) for name in plan.objectives]
        rows.append([candidate.label, *cells, str(len(candidate.trials)), short(candidate.params)])
    return header, rows


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, of which the metric may be undefined."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return NONE
    mean = statistics.fmean(values)
    return f"{mean:.4f}" if len(values) < 2 else f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A leaderboard in Markdown; the values of the settings stand below the table, which pages show at little height."""
    values = [f"* {row[0]}: {row[-1]}" for row in rows]
    header, rows = header[:-1], [row[:-1] for row in rows]
    return "\n".join([tabular(header, rows, texts=len(header)), "", *values]) + "\n"


def trials_table(plan: Plan, ledger: Ledger) -> str:
    """All trials as CSV."""
    keys = list(dict.fromkeys(key for trial in ledger.trials for key in trial.params))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["trial", "stage", "status", "seed", "epoch", *plan.objectives, "seconds", "run", "error", *keys])
    for trial in ledger.trials:
        values = [trial.value(name) for name in plan.objectives]
        writer.writerow(
            [
                *(trial.number, trial.stage, trial.outcome, trial.seed, trial.epochs if trial.final else trial.epoch),
                *("" if math.isinf(value) else value for value in values),
                *(round(trial.seconds, 1), trial.run_id, trial.error or ""),
                *(trial.params.get(key, "") for key in keys),
            ]
        )
    return text.getvalue()


def winner_config(plan: Plan, winner: Candidate) -> str:
    """The winner's configuration, ready for ``jobs/train.py``: a file of its own name."""
    changed = applied(plan.config, winner.params)
    return configuration.dump(changed.model_copy(update={"name": f"{plan.config.name}-best"}))


def drawn(plan: Plan, ledger: Ledger, best: Sequence[Trial]) -> dict[str, Figure]:
    """Figures of the search by name.

    Args:
        best: trials whose schedules are drawn, the best first.
    """
    (objective, more), *others = plan.objectives.items()
    trials = ledger.of("search")
    found = figures.drawn(figures.study_of(_flat(plan, trials), _space(plan), objective, more), objective)
    entries: list[tuple[str, Config]] = [("as given", plan.config)]
    entries += [(f"trial {trial.number}", applied(plan.config, trial.params)) for trial in best if trial.params]
    if plan.config.method.proximal:
        per_epoch = max(round(plan.steps / plan.config.training.epochs), 1)
        found["schedules"] = figures.schedules(entries, RunLength(plan.steps, per_epoch, len(plan.task.data.train)))
    if others and not more and not others[0][1]:  # the front is drawn of two that are to be small
        found["pareto_front"] = figures.pareto_front(trials, objective, others[0][0])
    return found


def _flat(plan: Plan, trials: Sequence[Trial]) -> list[Trial]:
    """Trials with the multipliers of each round as values of their own."""
    if plan.space:
        return list(trials)
    last = plan.tune.population.rounds - 1
    flat = []
    for trial in trials:
        if trial.round == last:
            params: dict[str, Any] = {
                f"{key}.{number}": value for key in MULTIPLIERS for number, value in enumerate(trial.params[key])
            }
            flat.append(Trial(**{**vars(trial), "params": params}))
    return flat


def _space(plan: Plan) -> Space:
    if plan.space:
        return plan.space
    widest = plan.tune.population.spread * max(plan.tune.population.factors) ** (plan.tune.population.rounds - 1)
    rounds = range(plan.tune.population.rounds)
    return {f"{key}.{number}": Domain(loguniform=[1 / widest, widest]) for key in MULTIPLIERS for number in rounds}
