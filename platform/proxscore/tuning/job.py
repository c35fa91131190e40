"""A sweep from its plan to its winner, recorded."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.training import cluster
from proxscore.tuning import report
from proxscore.tuning.ledger import Ledger, Trial
from proxscore.tuning.live import Live
from proxscore.tuning.plan import Plan
from proxscore.tuning.recording import Recording, recorded
from proxscore.tuning.stage import quiet
from proxscore.tuning.sweep import Candidate, Sweep


@dataclass
class Found:
    """What a sweep came to.

    Attributes:
        candidates: repeated settings, the best first.
        test: metrics of the winner on the test split by name, a value for each seed.
        config: file or URI of the winner's configuration.
        run_id, experiment_id: of the sweep in MLflow, which has it too.
    """

    candidates: list[Candidate]
    test: dict[str, list[float]]
    config: str
    run_id: str
    experiment_id: str


class NothingFoundError(RuntimeError):
    """No trial finished."""


def run(plan: Plan, show: Callable[[str], None]) -> Found:
    """Search, repeat, test; see :mod:`proxscore.tuning.sweep`. Goes on where an earlier attempt of the name ended.

    Raises:
        ConfigError: the cluster can never run a trial, or the sweep was begun with other settings.
        NothingFoundError: no trial finished; the sweep's run is FAILED.
    """
    ledger = Ledger(plan.folder, plan.settings())
    with quiet(), cluster.connected(plan.config, log=False):
        cluster.check_storage(plan.config)
        cluster.check_memory(plan.config, [plan.config.method], plan.task)
        if plan.tune.gpu_hours is not None and not cluster.use_gpu(plan.config):
            raise ConfigError("tune.gpu_hours: trials run on CPUs here; use tune.time_limit")
        with recorded(plan, ledger) as recording, Live(plan, ledger, show) as live:
            sweep = Sweep(plan, ledger, recording, live)
            sweep.search()
            leave_figures(plan, ledger, recording, live.best())
            candidates = sweep.repeat()
            winner = candidates[0]
            if not winner.trials:
                errors = [trial.error for trial in ledger.trials if trial.error] or ["none; the budget was too small"]
                raise NothingFoundError(f"no trial finished; the first error: {errors[0]}")
            file = keep_winner(plan, ledger, recording, candidates)
            show(f"testing {winner.label} with {len(winner.trials)} seeds")
            test = sweep.test(winner)
            recording.parent.metrics(_moments(test))
            return Found(candidates, test, file, recording.parent.run_id, recording.parent.experiment_id)


def _moments(test: dict[str, list[float]]) -> dict[str, float]:
    """Means over seeds, and standard deviations."""
    means = {f"test/{name}": statistics.fmean(values) for name, values in test.items()}
    return means | {f"test_sd/{name}": statistics.stdev(v) for name, v in test.items() if len(v) > 1}


def leave_figures(plan: Plan, ledger: Ledger, recording: Recording, best: list[Trial]) -> None:
    """Figures and the table of all trials."""
    for name, figure in report.drawn(plan, ledger, best[:3]).items():
        recording.parent.figure(figure, f"figures/{name}.png")
    recording.parent.text(report.trials_table(plan, ledger), "trials.csv")
    counts = {status: float(len(ledger.of("search", status))) for status in ("finished", "stopped", "failed")}
    recording.parent.metrics({f"trials_{status}": count for status, count in counts.items()})


def keep_winner(plan: Plan, ledger: Ledger, recording: Recording, candidates: list[Candidate]) -> str:
    """The winner's configuration and the leaderboard, in MLflow and beside the trials; returns where the file is."""
    winner = candidates[0]
    text = report.winner_config(plan, winner)
    recording.parent.text(text, "config.yaml")
    recording.parent.text(report.markdown(*report.leaderboard(plan, candidates)), "leaderboard.md")
    recording.parent.text(report.trials_table(plan, ledger), "trials.csv")
    recording.parent.describe({}, {"best.trial": winner.label, "best.run_id": winner.trials[0].run_id})
    recording.parent.metrics({f"best/{name}": winner.mean(name) for name in plan.objectives})
    for candidate in candidates:
        for trial in candidate.trials:
            recording.child(trial).describe({}, {"tune.best": str(candidate is winner).lower()})
    path = f"{ledger.path.removesuffix('sweep.json')}best.yaml"
    with ledger.files.open_output_stream(path) as stream:
        stream.write(text.encode())
    return f"{plan.folder}/best.yaml"


def space_text(plan: Plan) -> str:
    """The section ``tune`` with the space that will be searched, as YAML."""
    section = plan.tune.model_dump(mode="json", exclude={"space"})
    section["space"] = {key: domain.written() for key, domain in plan.space.items()}
    return configuration.dump_yaml({"tune": section})
