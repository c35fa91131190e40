"""jobs/evaluate.py --report: files in the output folder, artifacts in MLflow, refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main, Trained

QUICK = ["--report", "--draws", "2", "--shift-rows", "20"]


def posterior(trained: Trained, method: str = "proximal_score") -> str:
    (run,) = (run for run in trained.result["runs"] if run["method"] == method)
    return str(Path(run["folder"]) / "posterior")


def test_a_report_of_a_folder_is_two_files_and_tells_what_its_page_tells(
    evaluate: Main,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate([posterior(trained), *QUICK, "--ood", "noise", "--output", "out"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html"}
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    shown = capsys.readouterr().out
    assert all(sentence["text"] in shown for sentence in record["headline"])
    assert record["processes"] == 1  # whatever the default of training.workers
    assert "--shift-rows 20 --ood noise" in record["command"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert posterior(trained) in page


def test_a_report_of_an_mlflow_run_lies_in_that_run(
    evaluate: Main, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (run,) = (run for run in trained.result["runs"] if run["method"] == "adamw")
    uri = f"sqlite:///{trained.folder / 'mlflow.db'}"
    assert evaluate([f"runs:/{run['mlflow_run_id']}", *QUICK, "--output", "out", f"tracking.uri={uri}"]) == 0
    client = MlflowClient(uri)
    assert {found.path for found in client.list_artifacts(run["mlflow_run_id"], "report")} == {
        "report/report.html",
        "report/report.json",
    }
    kept = client.download_artifacts(run["mlflow_run_id"], "report/report.html", str(tmp_path))
    assert Path(kept).read_bytes() == (tmp_path / "out" / "report.html").read_bytes()
    assert client.get_run(run["mlflow_run_id"]).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ood", "noise"], "--ood is part of the uncertainty report: add --report"),
        (["--report", "--diagnose", "4"], "--diagnose is no part of the report"),
        (["--report", "--coverage", "1.5"], "--coverage is 1.5; it must be between 0 and 1"),
        (["--report", "--split", "validation"], "so they cannot judge them: take another split, or --calibrate test"),
        (["--report", "--ood", "nowhere"], "nowhere: no such file or folder, and none of digits, noise, photographs"),
        (["--report", "--ood", "digits"], "of its 1797 images are among those of training, validation or test"),
        (["--report", "--draws", "-1"], "--draws is -1"),
    ],
)
def test_what_cannot_be_reported_is_refused_in_one_line(
    evaluate: Main,
    trained: Trained,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate([posterior(trained), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
