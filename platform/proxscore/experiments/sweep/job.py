"""A sweep from its plan to its winner, recorded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from proxscore.config import ConfigError
from proxscore.experiments import runner
from proxscore.experiments.sweep import report
from proxscore.experiments.sweep.choice import Candidate, Choice
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.live import Live
from proxscore.experiments.sweep.plan import Plan
from proxscore.experiments.sweep.recording import Recording, recorded
from proxscore.experiments.sweep.stage import quiet
from proxscore.experiments.sweep.sweep import Sweep
from proxscore.storage import put
from proxscore.tasks.baselines import BestBaseline
from proxscore.tracking.runs import NOTE
from proxscore.training.baselines import Beside
from proxscore.training.exclusive import exclusive
from proxscore.training.ray import checks as cluster_checks
from proxscore.training.ray import cluster, connection
from proxscore.training.results import record_baseline


@dataclass
class Found:
    """The outcome of a sweep.

    Attributes:
        candidates: repeated settings, the best first.
        test: metrics of the winner on the test split by name, a value for each seed.
        config: file or URI of the winner's configuration.
        run_id: of the sweep in MLflow, which has it too.
        baseline: the best of what needs no training; none: the task has none.
    """

    candidates: list[Candidate]
    test: dict[str, list[float]]
    config: str
    run_id: str
    baseline: BestBaseline | None = None


class NothingFoundError(RuntimeError):
    """No trial finished."""


def run(plan: Plan, show: Callable[[str], None]) -> Found:
    """Search, repeat, test; see :mod:`proxscore.experiments.sweep.sweep`. Goes on where an earlier attempt of the name ended.

    Raises:
        ConfigError: the cluster can never run a trial, or the sweep was begun with other settings.
        NothingFoundError: no trial finished; the sweep's run is FAILED.
    """
    assert plan.config.name is not None
    found = finished(plan)
    if found is not None:
        show(f"{plan.config.name} is finished: these are its results; another name begins a new sweep")
        return found
    with (
        quiet(),
        exclusive(plan.config.training.storage, [plan.config.name]),
        connection.connected(runner.placed(plan.config), None),
    ):
        ledger = Ledger(plan.folder, plan.settings())
        cluster_checks.check_storage(plan.config)
        cluster_checks.check_memory(plan.preflight, [plan.config.method])
        if plan.tune.gpu_hours is not None and not cluster.use_gpu(plan.config):
            raise ConfigError("tune.gpu_hours: trials run on CPUs here; use tune.time_limit")
        ledger.found = None  # while it goes on
        with recorded(plan, ledger) as recording, Live(plan, ledger, show) as live:
            sweep = Sweep(plan, ledger, recording, live)
            sweep.search()
            leave_figures(plan, ledger, recording, live.best())
            if not live.best():
                show(f"no trial has a finite {sweep.objective}: the configuration as given is the winner")
            candidates = sweep.repeat()
            winner = candidates[0]
            if not winner.trials:
                errors = [trial.error for trial in ledger.trials if trial.error] or ["none; the budget was too small"]
                raise NothingFoundError(f"no trial finished; the first error: {errors[0]}")
            file = keep_winner(plan, ledger, recording, candidates)
            show(f"testing {winner.label} with {len(winner.trials)} seeds")
            test = sweep.test(winner)
            recording.parent.metrics(_moments(test))
            baseline = Beside(plan.task, show).best
            if baseline is not None:
                line = baseline.beside(means(test))
                record_baseline(recording.parent, baseline, line)
                leaderboard = report.markdown(*report.leaderboard(plan, candidates))
                recording.parent.describe({}, {NOTE: description(winner, leaderboard, line)})
            found = Found(candidates, test, file, recording.parent.run_id, baseline)
        ledger.found = {"winner": winner.label, "test": test, "config": file}
        ledger.found["baseline"] = None if baseline is None else baseline.to_json()
        ledger.write()
        return found


def description(winner: Candidate, leaderboard: str, line: str | None = None) -> str:
    """The text on the sweep's page: what won, and, when it is tested, whether it is behind what needs no training."""
    about = f"**{winner.label}** is the best by the validation split; `config.yaml` among the artifacts trains it."
    beside = "" if line is None else f"\n\nBeside methods that need no training it is **{line}**."
    return f"{about}{beside}\n\n{leaderboard}"[:5000]


def finished(plan: Plan) -> Found | None:
    """The outcome of a sweep that is finished; none where it has something left to do."""
    ledger = Ledger(plan.folder, plan.settings())
    if ledger.found is None or ledger.run_id is None:
        return None
    choice, held = Choice(plan, ledger), ledger.found
    candidates = choice.candidates()
    if not choice.ended() or candidates[0].label != held["winner"]:
        return None
    baseline = BestBaseline.of_json(held.get("baseline"))
    return Found(candidates, held["test"], held["config"], ledger.run_id, baseline)


def means(test: dict[str, list[float]]) -> dict[str, float]:
    """Means over seeds, by name."""
    return {name: statistics.fmean(values) for name, values in test.items()}


def _moments(test: dict[str, list[float]]) -> dict[str, float]:
    """Means over seeds, and standard deviations."""
    middle = {f"test/{name}": value for name, value in means(test).items()}
    spread = {name: values for name, values in test.items() if len(values) > 1 and all(map(math.isfinite, values))}
    return middle | {f"test_sd/{name}": statistics.stdev(values) for name, values in spread.items()}


def leave_figures(plan: Plan, ledger: Ledger, recording: Recording, best: list[Trial]) -> None:
    """Figures and the table of all trials."""
    for name, figure in report.drawn(plan, ledger, best[:3]).items():
        recording.parent.figure(figure, f"figures/{name}.png")
    recording.parent.text(report.trials_table(plan, ledger), "trials.csv")
    counts = {status: float(len(ledger.of("search", status))) for status in ("finished", "stopped", "failed")}
    counts["diverged"] = float(sum(trial.diverged for trial in ledger.of("search", "failed")))
    recording.parent.metrics({f"trials_{status}": count for status, count in counts.items()})


def keep_winner(plan: Plan, ledger: Ledger, recording: Recording, candidates: list[Candidate]) -> str:
    """The winner's configuration and the leaderboard, in MLflow and beside the trials; returns where the file is."""
    winner = candidates[0]
    text = report.winner_config(plan, winner)
    recording.parent.text(text, "config.yaml")
    leaderboard = report.markdown(*report.leaderboard(plan, candidates))
    recording.parent.text(leaderboard, "leaderboard.md")
    recording.parent.describe({}, {NOTE: description(winner, leaderboard)})
    recording.parent.text(report.trials_table(plan, ledger), "trials.csv")
    recording.parent.describe({}, {"best.trial": winner.label, "best.run_id": winner.trials[0].run_id})
    best = {f"best/{name}": winner.mean(name) for name in plan.objectives}
    recording.parent.metrics({name: value for name, value in best.items() if math.isfinite(value)})
    for candidate in candidates:
        for trial in candidate.trials:
            recording.child(trial).describe({}, {"tune.best": str(candidate is winner).lower()})
    path = f"{ledger.path.removesuffix('sweep.json')}best.yaml"
    put(ledger.files, path, text)
    return f"{plan.folder}/best.yaml"
