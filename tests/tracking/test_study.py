"""A study leaves its tables and figures in MLflow, and a true status."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from proxscore.tracking import study


def test_tables_and_figures_are_artifacts_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    figure = Figure()
    figure.subplots().plot([1, 2])
    with study("bias", {"draws": 4}, tmp_path / "out") as recorded:
        text = recorded.table("bias", ["a", "b"], [[1, "x"], [2.5, "y"]])
        recorded.figure("curve", figure)
        recorded.metrics({"slope": 0.5})
    assert text.splitlines() == ["| a | b |", "|---|---|", "| 1 | x |", "| 2.5 | y |"]
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("studies").experiment_id])
    assert (run.info.status, run.data.params, run.data.metrics) == ("FINISHED", {"draws": "4"}, {"slope": 0.5})
    assert {item.path for item in client.list_artifacts(run.info.run_id, "tables")} == {
        "tables/bias.csv",
        "tables/bias.md",
    }
    assert [item.path for item in client.list_artifacts(run.info.run_id, "figures")] == ["figures/curve.png"]
    assert (tmp_path / "out" / "bias.csv").read_text().splitlines() == ["a,b", "1,x", "2.5,y"]
    assert (tmp_path / "out" / "curve.png").stat().st_size > 1000


def test_a_study_that_fails_is_marked_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match="too wide"), study("bias", {}):
        raise ValueError("too wide")
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("studies").experiment_id])
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "too wide")
