"""A population: rounds in order, the worst replaced by the best, and a learned schedule that gives the same run from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_sweeps import tree

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.population import MULTIPLIERS, Population
from proxscore.experiments.sweep.settings import PopulationConfig
from proxscore.experiments.sweep.space import applied
from proxscore.inference.schedules import Schedule
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.fit import Fitted, checkpoint, fit
from proxscore.training.loop.run_length import step_at
from proxscore.training.loop.train import finish, fit_all

SIZE, ROUNDS = 4, 3


def population(folder: Path, **changes: Any) -> Population:
    config = PopulationConfig(**({"size": SIZE, "rounds": ROUNDS} | changes))
    return Population(Ledger(str(folder), {}), config, "nll", False, epochs=6.0, seed=0, search_seed=1)


def one_round(source: Population, values: dict[int, float | None]) -> list[Trial]:
    """All members of a round, finished with these values; None fails."""
    trials = []
    for _ in range(SIZE):
        trial = source.propose()
        assert trial is not None
        trials.append(source.ledger.add(trial))
    assert source.propose() is None or not source.left()  # not before the round is over
    for trial in trials:
        value = values[trial.member or 0]
        trial.status = "failed" if value is None else "finished"
        trial.final = {} if value is None else {"nll": value}
    return trials


def test_the_worst_member_takes_over_one_of_the_best_and_varies_its_multipliers(tmp_path: Path) -> None:
    source = population(tmp_path)
    first = one_round(source, {0: 0.5, 1: 0.4, 2: 0.9, 3: 0.6})
    assert first[0].params == {key: [1.0, 1.0, 1.0] for key in MULTIPLIERS}  # as given
    assert all(trial.parent is None and trial.epochs == 2.0 for trial in first)
    second = one_round(source, {0: 0.5, 1: 0.4, 2: None, 3: 0.3})
    assert [trial.parent for trial in second] == [0, 1, 1, 3]
    for member in (0, 1, 3):  # the others go on as they were
        assert second[member].params == first[member].params
    for key in MULTIPLIERS:
        history = second[2].params[key]
        assert history[0] == first[1].params[key][0]
        factors = PopulationConfig().factors
        assert min(abs(history[1] / history[0] - factor) for factor in factors) < 1e-12
        assert history[2] == history[1]
    third = one_round(source, {0: 0.5, 1: 0.4, 2: 0.2, 3: 0.3})
    assert third[2].parent == second[3].number  # a failed member is the worst
    assert all(trial.epochs == 6.0 for trial in third)
    assert source.left() == 0


def test_no_member_goes_on_from_a_failed_one_however_many_failed(tmp_path: Path) -> None:
    source = population(tmp_path)
    one_round(source, {0: None, 1: 0.4, 2: None, 3: float("nan")})
    second = one_round(source, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4})
    assert [trial.parent for trial in second] == [1, 1, 1, 1]


def test_a_population_without_a_usable_member_ends(tmp_path: Path) -> None:
    source = population(tmp_path)
    one_round(source, dict.fromkeys(range(SIZE)))
    assert source.left() == 0


def test_a_population_that_goes_on_makes_the_same_choices(tmp_path: Path) -> None:
    values: dict[int, float | None] = {0: 0.5, 1: 0.4, 2: 0.9, 3: 0.6}
    whole = population(tmp_path / "whole")
    one_round(whole, values)
    expected = one_round(whole, values)
    source = population(tmp_path / "killed")
    one_round(source, values)
    source.ledger.add(source.propose() or Trial(0))
    source.ledger.trials[-1].status = "finished"
    source.ledger.write()
    again = population(tmp_path / "killed")
    rest = [again.ledger.add(again.propose() or Trial(0)) for _ in range(SIZE - 1)]
    assert [trial.params for trial in rest] == [trial.params for trial in expected[1:]]
    assert [trial.parent for trial in rest] == [trial.parent for trial in expected[1:]]


def test_multipliers_change_where_a_round_ends() -> None:
    schedule = Schedule("cosine", warmup=2, multipliers=(1.0, 3.0, 0.5)).resolve(total_steps=16, steps_per_epoch=4)
    plain = Schedule("cosine", warmup=2).resolve(total_steps=16, steps_per_epoch=4)
    length: Any = type("RunLength", (), {"total_steps": 16})
    ends = [step_at(number / 3, length) for number in (1, 2, 3)]
    assert ends == [6, 11, 16]
    for step in range(16):
        number = sum(step >= end for end in ends)
        assert schedule.factor(step) == pytest.approx((1.0, 3.0, 0.5)[number] * plain.factor(step))
    with pytest.raises(ValueError, match=r"multipliers are \[1.0, 0.0\]; they must be positive"):
        Schedule(multipliers=(1.0, 0.0))


def run(
    config: Config, folder: Path, until: float | None = None, start: Path | None = None
) -> tuple[list[float], Fitted, Path]:
    """Losses by step, what is left, and the last checkpoint."""
    losses: list[float] = []
    worker = LocalWorker(
        folder,
        torch.device("cpu"),
        lambda payloads: losses.extend(record["train/nll"] for record in payloads[0]["records"]),
        keep=1,
    )
    task = config.task.build()
    fitted = fit(config, config.method, config.training.epochs, task, worker, until=until, start=start)
    if until is None:
        finish(fit_all(config, config.method, config.training.epochs, task, worker))
    else:
        worker.report(
            {"step": fitted.snapshot.progress["step"], "records": [], "score": 0.0},
            lambda path: checkpoint.save(path, fitted.snapshot),
        )
    return losses, fitted, worker.folders()[-1]


def test_the_learned_schedule_from_scratch_is_the_run_of_the_lineage_bit_for_bit(tmp_path: Path) -> None:
    config = configuration.parse(tree(tmp_path, training={"workers": 0}))
    history = {key: [1.0, 2.0, 0.25] for key in MULTIPLIERS}
    start, losses = None, []
    for number in range(3):
        params = {key: [*values[: number + 1], *[values[number]] * (2 - number)] for key, values in history.items()}
        part, fitted, start = run(applied(config, params), tmp_path / str(number), 4 * (number + 1) / 3, start)
        losses += part
    whole, expected, _ = run(applied(config, history), tmp_path / "whole")
    assert len(losses) == 16
    assert losses == whole[:16]
    for (name, one), (_, other) in zip(
        fitted.run.module.named_parameters(), expected.run.module.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    other_history = {key: [1.0, 2.0, 1.0] for key in MULTIPLIERS}
    different, _, _ = run(applied(config, other_history), tmp_path / "different")
    assert different[:11] == whole[:11]  # the multipliers of the last round count from its first step on
    assert different[:16] != whole[:16]
