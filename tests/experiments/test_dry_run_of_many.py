"""A dry run of a comparison or a search estimates as many runs as there will be, side by side where they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxscore.experiments import dry_run
from proxscore.experiments.comparison.plan import plan as comparison_plan
from proxscore.experiments.comparison.settings import load as load_comparison
from proxscore.experiments.sweep.plan import plan as sweep_plan
from proxscore.experiments.sweep.settings import of
from proxscore.training.preflight.speed import Speed

BASE: dict[str, Any] = {
    "task": {
        "model": {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 16}},
        "data": {"kind": "digits", "limit": 200},
    },
    "training": {"device": "cpu", "batch_size": 20, "workers": 1, "epochs": 2},
    "cost": {"hourly": {"cpu": 3600}},
}
COMPARISON = """
name: few
budget: 2
seeds: [0, 1, 2]
base: {task: {model: {name: small_cnn}, data: {kind: digits, limit: 200}}, training: {device: cpu, batch_size: 20}}
methods:
  A: {method: {kind: adamw}, tune: {lr: [0.001, 0.01]}}
  S: {method: {kind: sgd}, tune: {lr: [0.001, 0.01]}}
"""


@pytest.fixture(autouse=True)
def speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second for a row; machines of four cores."""
    monkeypatch.setattr("proxscore.training.preflight.estimate.speed_of", lambda *_: Speed(0.0, 1.0, 0.0, "given"))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_cells_of_a_comparison(tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text(COMPARISON)
    plan = comparison_plan(*load_comparison(tmp_path / "few.yaml", []))
    text = dry_run.of_comparison(plan)
    # Each method: three seeds as it is given, where 0.001 is AdamW's own, trials, and two more seeds of the one that is chosen.
    given = {(cell.method, cell.setting, cell.seed) for cell in plan.first()}
    assert f"cells            {len(given) + 2 * 2}, 4 at a time" in text


def test_trials_of_a_search_and_their_price() -> None:
    tune = {"trials": 7, "top": 2, "seeds": [0, 1, 2], "space": {"method.lr": {"loguniform": [1e-4, 1e-2]}}}
    config, settings = of({**BASE, "method": {"kind": "adamw"}, "tune": tune}, "here")
    text = dry_run.of_sweep(sweep_plan(config, settings))
    assert "search           7 trials, and 4 repetitions" in text
    assert "trials           11, 4 at a time" in text
    # One core for a second costs one dollar.
    total, price = (next(line for line in text.splitlines() if line.startswith(word)) for word in ("total", "price"))
    hours = float(total.split(",")[1].split()[0])
    assert float(price.split()[1].replace(",", "")) == pytest.approx(3600 * hours, rel=0.01)
