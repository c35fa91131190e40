"""The study of long horizons: its published errors, its protocol, and the whole of it on a file of the official form."""

from __future__ import annotations

import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from proxscore.config import ConfigError
from proxscore.experiments.study import command
from proxscore.forecasting.sources.recipe import RECIPES

SCRIPT = Path(__file__).resolve().parents[2] / "jobs" / "studies" / "long_horizon" / "run.py"


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))  # leaves no __pycache__ among the studies


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """National illness in its official form: 966 weeks, three of its columns."""
    values = 5 + np.random.default_rng(0).normal(0, 1, (966, 3)).round(3)
    table = pd.DataFrame(values, columns=["% WEIGHTED ILI", "ILITOTAL", "OT"])
    table.insert(0, "date", pd.date_range("2002-01-01", periods=966, freq="7D").strftime("%Y-%m-%d %H:%M:%S"))
    path = tmp_path / "official" / RECIPES["ILI"].file
    path.parent.mkdir(parents=True)
    table.to_csv(path, index=False)
    return tmp_path / "official"


def options(output: Path, **other: Any) -> Namespace:
    plain = {
        "only": None,
        "models": None,
        "horizons": None,
        "methods": None,
        "epochs": None,
        "draws": 2,
        "seeds": 1,
        "set": [],
    }
    return Namespace(**{**plain, "output": output, "device": "cpu", "quick": True, **other})


def test_published_errors_are_of_the_horizons_of_the_protocol_and_say_where_they_are_from(
    study: dict[str, Any],
) -> None:
    rows = study["published"]()
    assert {row["found"] for row in rows} == {"looked up", "memory", "second hand"}
    assert all(row["source"] for row in rows)
    for row in rows:
        assert all(0 < float(row[error]) < 4 for error in ("mse", "mae", "mase") if row[error])
        if row["set"] in RECIPES and row["horizon"]:
            recipe, horizon = RECIPES[row["set"]], int(row["horizon"])
            assert horizon in (recipe.koopa_horizons if row["model"] == "Koopa" else recipe.horizons)
            if row["context"]:
                settings = study["protocol"](row["set"], row["model"], horizon, Path())
                assert f"task.context={row['context']}" in settings
    keys = [(row["set"], row["horizon"], row["model"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert sum(row["model"] == "PatchTST/64" for row in rows) == 8 * 4


@pytest.mark.parametrize("model", ["Koopa", "DLinear", "PatchTST/42"])
def test_a_cell_fits_an_official_file(model: str, study: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    horizon = study["horizons"]("ILI", model)[0]
    point, posterior = (
        study["cell"](("ILI", model, horizon, method, 0), options(tmp_path, path=folder))
        for method in ("adamw", "proximal_score")
    )
    assert (point.method.kind, posterior.method.kind) == ("adamw", "proximal_score")
    assert point.baseline is posterior.baseline is None
    task = point.task.build()
    assert (task.context, task.config.horizon) == (48 if model == "Koopa" else 104, 24)
    # As many as the literature's loaders count: int(0.2 * 966) - 24 + 1 windows of each column.
    assert task.data.splits["counts"]["test"] == 3 * (193 - 24 + 1)


def test_what_is_not_there_is_said_before_anything_is_trained(
    study: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    for other, said in (
        ({"only": "ECL"}, r"electricity/electricity\.csv is not there"),
        ({"only": "ETTh9"}, r"--only: no ETTh9; one of"),
        ({"path": None}, r"--path: a folder with the official files"),
        ({"models": "DeepAR"}, r"nothing of these is published"),
    ):
        with pytest.raises(ConfigError, match=said):
            study["measure"](options(tmp_path, **{"path": folder, **other}), None, None)


@pytest.mark.slow
def test_the_study_runs_and_prints_published_errors_beside_its_own(
    study: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arguments = ["--path", str(folder), "--quick", "--draws", "2", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert command("long horizon", None, study["measure"], study["OPTIONS"], arguments) == 0
    rows = [
        [cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines() if "ILI" in line
    ]
    measured = {row[4]: float(row[5]) for row in rows if row[4] in ("adamw", "proximal_score")}
    assert len(measured) == 2
    assert all(0.5 < error < 3 for error in measured.values())  # noise about a constant, in units of its deviation
    assert ["1.621", "0.800"] in [row[5:7] for row in rows]
