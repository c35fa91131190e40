"""A comparison says which of its methods are behind the best of those without training, and lists them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from proxscore.experiments.comparison import settings, table
from proxscore.experiments.comparison.plan import AS_GIVEN, Plan, plan
from proxscore.forecasting.baselines import BASELINES

pytest.importorskip("pmdarima")
NAMES = ["naive", "seasonal_naive", "linear_ar"]


def planned(folder: Path, baselines: list[str]) -> Plan:
    file = folder / "compare.yaml"
    data = {"kind": "taylor", "test_windows": 3, "validation_windows": 3}
    model = {"name": "SimpleFeedForward", "kwargs": {"hidden_dimensions": [8]}}
    task = {
        "kind": "forecasting",
        "context": 48,
        "train_stride": 40,
        "model": model,
        "data": data,
        "baselines": baselines,
    }
    base = {"task": task, "training": {"storage": str(folder), "device": "cpu"}}
    methods = {name: {"method": {"kind": "adamw"}} for name in ("one", "two")}
    file.write_text(yaml.safe_dump({"name": "demand", "budget": 2, "seeds": [0], "base": base, "methods": methods}))
    return plan(*settings.load(file, []))


def test_the_table_lists_them_and_notes_say_who_is_behind(tmp_path: Path) -> None:
    found = {
        (name, AS_GIVEN, 0): {"status": "finished", "metrics": {"crps": crps, "nll": 9.0}}
        for name, crps in (("one", 732.2), ("two", 100.0))
    }
    told = table.write(planned(tmp_path, NAMES), found, tmp_path / "report")
    assert [row[0] for row in told.body] == ["one", "two", "naive", "seasonal naive, 336", "linear AR"]
    assert told.best is not None
    best = f"{told.best.test['crps']:.1f}"
    assert told.notes[:2] == [
        f"* one: behind linear AR: CRPS 732.2 against {best}.",
        f"* two: ahead of linear AR: CRPS 100.0 against {best}.",
    ]
    (row,) = [row for row in told.body if row[0] == "linear AR"]
    assert float(row[told.header.index("CRPS")]) == pytest.approx(told.best.test["crps"], rel=0.02)  # of samples
    assert told.notes[0] in (tmp_path / "report" / "comparison.md").read_text()


def test_one_that_fails_is_told_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(BASELINES["linear_ar"], "fit", fail)
    found = {("one", AS_GIVEN, 0): {"status": "finished", "metrics": {"crps": 732.2, "nll": 9.0}}}
    told = table.write(planned(tmp_path, NAMES), found, tmp_path / "report")
    assert [row[0] for row in told.body][2:] == ["naive", "seasonal naive, 336"]
    assert "* Baselines: linear AR failed: no memory." in told.notes
