"""Searchers: Optuna's own sequence, an interrupted search that goes on, and a scheduler that remembers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher
from small_sweeps import settings

from proxscore import config as configuration
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.search import Listed, Queue, Sampled
from proxscore.experiments.sweep.space import Domain, distribution
from proxscore.experiments.sweep.stage import replay

SPACE = {"method.max_mean_step": Domain(loguniform=[0.01, 1.0]), "method.penalty.mean": Domain(uniform=[0.1, 4.0])}


def source(ledger: Ledger, folder: Path, **changes: Any) -> Sampled:
    config, _ = settings(folder)
    base = changes.pop("base", configuration.flatten(config))
    common: dict[str, Any] = {"trials": 20, "random": False, "seed": 0, "search_seed": 5, "epochs": 4.0}
    return Sampled(ledger, SPACE, base, {"nll": False}, **(common | changes))


def target(params: dict[str, Any]) -> float:
    return (params["method.max_mean_step"] - 0.3) ** 2 + (params["method.penalty.mean"] - 1.0) ** 2


def finish(trial: Trial, value: float) -> Trial:
    trial.status, trial.final = "finished", {"nll": value}
    return trial


GIVEN = {"method.max_mean_step": 0.2, "method.penalty.mean": 1.0}  # as the configuration is


def test_the_sequence_of_trials_is_that_of_optuna_with_the_given_point_enqueued(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "sweep"), {})
    ours = source(ledger, tmp_path, trials=12, base={"method.max_mean_step": 0.2, "method.penalty.mean": 1.0})
    theirs = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=5, n_startup_trials=4))
    theirs.enqueue_trial(GIVEN)
    distributions = {key: distribution(domain) for key, domain in SPACE.items()}
    for number in range(12):
        trial = ours.propose()
        assert trial is not None
        asked = theirs.ask(distributions)
        assert trial.params == ({} if number == 0 else asked.params)
        ours.ended(finish(ledger.add(trial), target(asked.params)))
        theirs.tell(asked, target(asked.params))
    assert ours.left() == 0
    assert ours.study.best_value == theirs.best_value
    assert ours.study.trials[0].params == GIVEN
    assert all(trial.state == TrialState.COMPLETE for trial in ours.study.trials)


def test_of_the_given_point_the_sampler_learns_what_lies_in_the_space(tmp_path: Path) -> None:
    ours = source(Ledger(str(tmp_path), {}), tmp_path, base={"method.max_mean_step": None, "method.penalty.mean": 4.0})
    first = ours.propose()
    assert first is not None
    ours.ended(finish(ours.ledger.add(first), 0.1))
    assert first.params == {}
    assert [(trial.params, trial.value) for trial in ours.study.trials] == [({"method.penalty.mean": 4.0}, 0.1)]


@pytest.mark.parametrize("resumed", [False, True])
def test_settings_like_those_that_failed_are_proposed_less_often(resumed: bool, tmp_path: Path) -> None:
    """All trials above 1.0 fail, the others end with the same value: only the failures tell them apart."""

    def share(told: bool) -> float:
        ledger = Ledger(str(tmp_path / f"{told}"), {})
        ours = source(ledger, tmp_path, trials=60, base={})
        proposed = []
        for number in range(60):
            if resumed and number == 30:
                ours = source(ledger, tmp_path, trials=60, base={})
            trial = ledger.add(ours.propose() or Trial(0))
            mean = trial.params.get("method.penalty.mean", 0.5)
            proposed.append(mean)
            if told and mean > 1.0:
                trial.status, trial.error = "failed", "diverged"
                ours.ended(trial)
            else:
                ours.ended(finish(trial, 1.0))
        return sum(mean > 1.0 for mean in proposed[30:]) / 30

    assert share(told=True) < 0.5 * share(told=False)


def test_a_search_that_goes_on_knows_what_was_found(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "sweep"), {})
    first = source(ledger, tmp_path)
    for value in (9.0, 0.5, 0.4):
        trial = first.propose()
        assert trial is not None
        first.ended(finish(ledger.add(trial), value))
    stopped = first.propose()
    assert stopped is not None
    ledger.add(stopped)
    stopped.status, stopped.curve = "stopped", [{"epoch": 1.0, "nll": 3.0}, {"epoch": 2.0, "nll": 2.0}]
    failed = first.propose()
    assert failed is not None
    ledger.add(failed).status = "failed"
    ledger.write()
    again = source(Ledger(str(tmp_path / "sweep"), {}), tmp_path)
    told = again.study.trials
    assert [trial.state for trial in told] == [*3 * [TrialState.COMPLETE], *2 * [TrialState.PRUNED]]
    assert [trial.value for trial in told[:3]] == [9.0, 0.5, 0.4]  # the first: as given
    assert told[3].intermediate_values == {0: 3.0, 1: 2.0}  # what TPE ranks a stopped one by
    assert (told[4].params, told[4].intermediate_values) == (failed.params, {})  # and a failed one as the worst
    assert again.left() == 15
    fresh = again.propose()
    assert fresh is not None
    assert fresh.params not in [trial.params for trial in ledger.trials]


def queue(ledger: Ledger, given: Any, slots: int = 2) -> Queue:
    return Queue(given, ledger, "search", lambda trial: {"number": trial.number}, lambda: slots, lambda: False)


def test_interrupted_trials_come_first_and_no_more_run_than_there_is_room_for(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "sweep"), {})
    for status in ("finished", "interrupted", "stopped", "interrupted"):
        ledger.add(Trial(len(ledger.trials), status=status, params={"method.penalty.mean": 1.0}))  # type: ignore[arg-type]
    waiting = queue(ledger, source(ledger, tmp_path, trials=5))
    assert [waiting.suggest("a"), waiting.suggest("b"), waiting.suggest("c")] == [{"number": 1}, {"number": 3}, None]
    waiting.ended(finish(ledger.trials[1], 1.0))
    assert waiting.suggest("d") == {"number": 4}
    waiting.ended(finish(ledger.trials[3], 1.0))
    assert waiting.suggest("e") == Searcher.FINISHED


def test_a_list_is_worked_off_once(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "sweep"), {})
    wanted: list[tuple[dict[str, Any], int]] = [({"a": 1}, 0), ({"a": 1}, 1), ({}, 1)]
    listed = Listed(ledger, wanted, 4.0)
    while listed.left():
        ledger.add(listed.propose() or Trial(0))
    assert [(trial.params, trial.seed) for trial in ledger.of("repeat")] == wanted
    assert Listed(ledger, wanted, 4.0).left() == 0


@pytest.mark.parametrize("known", [0, 9])
def test_the_scheduler_stops_what_is_worse_than_trials_of_an_earlier_attempt(known: int, tmp_path: Path) -> None:
    """One in three goes on past a rung: after nine trials of nll 1, one of nll 2 is stopped; the first one never is."""
    ledger = Ledger(str(tmp_path / "sweep"), {})
    for number in range(known):
        ledger.add(Trial(number, status="finished", curve=[{"epoch": 1.0, "nll": 1.0 + 0.01 * number}]))
    scheduler = AsyncHyperBandScheduler(
        time_attr="epoch", metric="nll", mode="min", max_t=9, reduction_factor=3, stop_last_trials=False
    )
    replay(scheduler, ledger)
    new: Any = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, new)
    decision = scheduler.on_trial_result(None, new, {"epoch": 1.0, "nll": 2.0})
    assert decision == ("STOP" if known else "CONTINUE")
