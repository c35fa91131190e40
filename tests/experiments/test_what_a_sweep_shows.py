"""The live table, the leaderboard and the table of trials, read back."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_sweeps import settings

from proxscore import config as configuration
from proxscore.experiments.sweep import live as views
from proxscore.experiments.sweep import report
from proxscore.experiments.sweep.choice import Candidate
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.live import Live, short
from proxscore.experiments.sweep.plan import Plan, plan

KEY = "method.penalty.mean"


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    return plan(*settings(tmp_path, objectives=["nll", "ece"], trials=6))


@pytest.fixture
def ledger(planned: Plan) -> Ledger:
    found = Ledger(planned.folder, {})
    values: list[tuple[Any, float | None]] = [("finished", 0.5), ("stopped", None), ("finished", 0.3), ("failed", None)]
    for number, (status, nll) in enumerate(values):
        params = {KEY: 1.0 + number} if number else {}
        trial = found.add(Trial(number, status=status, params=params, epochs=4.0, seconds=60.0, run_id=f"run{number}"))
        trial.final = {} if nll is None else {"nll": nll, "ece": nll / 10}
    found.trials[1].curve = [{"epoch": 1.0, "nll": 2.0, "ece": 0.2}]
    found.trials[3].error = "the network is too wide"
    running = found.add(Trial(4, params={KEY: 9.0}, epochs=4.0))
    running.report({"epoch": 2.0, "nll": 0.7, "ece": 0.1})
    return found


def shown(table: Any) -> list[list[str]]:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    rows = [line for line in captured.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_the_table_has_what_runs_and_then_the_best(planned: Plan, ledger: Ledger) -> None:
    rows = shown(Live(planned, ledger, print).table())
    assert rows == [
        ["4", "running", "2/4", "0.7000", "0.1000", "0.0", "penalty.mean=9"],
        ["2", "finished", "4/4", "0.3000", "0.0300", "1.0", "penalty.mean=3"],
        ["0", "finished", "4/4", "0.5000", "0.0500", "1.0", "as given"],
    ]


def test_lines_tell_the_rate_the_time_left_and_the_best(
    planned: Plan, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    now = [1000.0]
    monkeypatch.setattr(views.time, "monotonic", lambda: now[0])
    view = Live(planned, ledger, lines.append)
    view.stage("search", 6)
    now[0] += 30
    ledger.trials[4].status, ledger.trials[4].final = "finished", {"nll": 0.2, "ece": 0.02}
    view.ended(ledger.trials[4])
    view.ended(ledger.trials[3])
    view.ended(ledger.trials[1])
    assert lines == [
        "search 5/6 (1 failed) · 120 per hour · 30 s left · trial 4 finished at epoch 4, validation nll 0.2000 ece 0.0200 · "
        "best nll 0.2000 (trial 4)",
        "search 5/6 (1 failed) · 120 per hour · 30 s left · trial 3 failed: the network is too wide · best nll 0.2000 (trial 4)",
        "search 5/6 (1 failed) · 120 per hour · 30 s left · trial 1 stopped at epoch 1, validation nll 2.0000 ece 0.2000 · "
        "best nll 0.2000 (trial 4)",
    ]


def test_a_file_gets_a_table_once_a_minute(planned: Plan, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    now = [1000.0]
    monkeypatch.setattr(views.time, "monotonic", lambda: now[0])
    view = Live(planned, ledger, lines.append)
    view.stage("search", 6)
    for _ in range(130):
        now[0] += 1
        view.refresh()
    assert len(lines) == 2
    assert "running" in lines[0]


def test_the_leaderboard_has_means_and_deviations_over_seeds(planned: Plan) -> None:
    runs = [Trial(n, status="finished", final={"nll": v, "ece": 0.1}) for n, v in enumerate((0.30, 0.34, 0.29))]
    header, rows = report.leaderboard(planned, [Candidate("trial 2", {KEY: 3.0}, runs), Candidate("as given", {}, [])])
    assert header == ["settings", "validation nll", "validation ece", "seeds", "values"]
    deviation = statistics.stdev([0.30, 0.34, 0.29])
    assert rows[0] == ["trial 2", f"0.3100 ± {deviation:.4f}", "0.1000 ± 0.0000", "3", "penalty.mean=3"]
    assert rows[1] == ["as given", "–", "–", "0", "as given"]
    lines = report.markdown(header, rows).splitlines()
    assert lines[2] == f"| trial 2 | 0.3100 ± {deviation:.4f} | 0.1000 ± 0.0000 | 3 |"
    assert lines[-2:] == ["* trial 2: penalty.mean=3", "* as given: as given"]


def test_the_table_of_trials_has_every_one_with_its_error(planned: Plan, ledger: Ledger) -> None:
    rows = list(csv.DictReader(io.StringIO(report.trials_table(planned, ledger))))
    assert [row["status"] for row in rows] == ["finished", "stopped", "finished", "failed", "running"]
    assert [row["nll"] for row in rows] == ["0.5", "2.0", "0.3", "", "0.7"]
    assert rows[3]["error"] == "the network is too wide"
    assert [row[KEY] for row in rows] == ["", "2.0", "3.0", "4.0", "9.0"]


def test_the_winners_file_is_a_training_job_of_its_own_name(planned: Plan, tmp_path: Path) -> None:
    text = report.winner_config(planned, Candidate("trial 2", {KEY: 3.0, "method.draws": 2}, []))
    (tmp_path / "best.yaml").write_text(text)
    config = configuration.load(tmp_path / "best.yaml")
    assert config.name == "sweep-best"
    assert config.method.penalty.mean == 3.0  # type: ignore[union-attr]
    assert config.training.epochs == 2  # two evaluations per step, half as many steps


def test_settings_in_a_line_have_the_last_parts_of_their_keys() -> None:
    assert short({"method.penalty.mean": 0.123456, "method.paired": True}) == "penalty.mean=0.1235 method.paired=True"
    assert short({"a.b.multipliers": [1.0, 0.5]}) == "b.multipliers=[1 0.5]"
