"""The same name again: a finished run prints its results, one that another job works on is refused; and paths and passwords."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from proxscore import config as configuration
from proxscore.config import DivergedError
from proxscore.training import launch
from proxscore.training.exclusive import exclusive

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from collections.abc import Callable

    from conftest import Main


def recorded(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("proxscore")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def points(uri: str) -> dict[str, Counter[int]]:
    """How often each metric was recorded at each step."""
    (run,) = recorded(uri)
    client = MlflowClient(uri)
    return {
        name: Counter(point.step for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def test_a_finished_run_prints_its_results_and_ends(
    train: Main, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, uri = [*small, "name=done", "--result", "result.json"], f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert train(overrides) == 0
    first, before = json.loads((tmp_path / "result.json").read_text()), points(uri)
    shown = capsys.readouterr().out
    (tmp_path / "result.json").unlink()
    files = sorted(file for file in (tmp_path / "runs").rglob("*"))
    assert train(overrides) == 0
    assert points(uri) == before
    assert set(before["test/nll"].values()) == {1}
    assert json.loads((tmp_path / "result.json").read_text()) == first
    assert sorted(file for file in (tmp_path / "runs").rglob("*")) == files
    again = capsys.readouterr().out
    assert "\ndone is finished: these are its results" in again
    assert again[again.index("done: test split") :] == shown[shown.index("done: test split") :]
    assert train([*overrides, "evaluation.draws=3"]) == 2
    assert "finished, with evaluation.draws=16, now it is 3: jobs/evaluate.py" in capsys.readouterr().err


def test_what_a_killed_attempt_has_recorded_at_its_end_is_not_recorded_again(
    train: Main, small: list[str], tmp_path: Path
) -> None:
    """The kill comes after the final values, and before the run is known to be finished."""
    overrides = [*small, "name=done"]
    assert train(overrides) == 0
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    before = points(uri)
    (tmp_path / "runs" / "done-proximal_score" / "finished.json").unlink()
    assert train(overrides) == 0
    after = points(uri)
    assert {name: after[name] for name in after if name.startswith(("test/", "train/", "nll/", "validation/"))} == {
        name: before[name] for name in before if name.startswith(("test/", "train/", "nll/", "validation/"))
    }


def test_a_second_job_of_the_name_is_refused_in_a_line_and_touches_nothing(
    repository: Path, train: Main, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two real processes: one of them trains, the other is refused; the run is recorded once, and FINISHED."""
    overrides = [*small, "name=both", "training.epochs=300", "training.validate_every=300"]
    overrides += ["training.checkpoint_every=50"]
    job = subprocess.Popen(
        [sys.executable, str(repository / "jobs" / "train.py"), *overrides],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert job.stdout is not None
    for line in job.stdout:
        if " · step " in line:
            break
    assert train(overrides) == 2
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert refusal.startswith("error: both-proximal_score in ")
    assert "is in the hands of another job, of " in refusal
    assert f"(process {job.pid}) since " in refusal
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 0, output
    (run,) = recorded(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.info.status == "FINISHED"
    assert sorted(points(f"sqlite:///{tmp_path / 'mlflow.db'}")["nll/train"].items()) == [
        (s, 1) for s in range(1, 1201)
    ]
    assert not list((tmp_path / "runs").rglob("lock-*"))


def test_a_comparisons_and_a_sweeps_name_are_locked_too(
    job: Callable[[str], Main], small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compare.yaml").write_text(
        "name: held\nbudget: 1\nseeds: [0]\nbase: {task: {model: {name: small_cnn}, data: {kind: digits, limit: 200}}, "
        "training: {batch_size: 50, device: cpu}}\nmethods: {AdamW: {method: {kind: adamw}}}\n"
    )
    with exclusive(str(tmp_path / "runs"), ["held"]):
        assert job("compare")(["--config", "compare.yaml"]) == 2
        assert "error: held in " in capsys.readouterr().err


def test_a_diverged_run_says_so_with_step_and_settings_and_is_recorded_as_diverged(
    train: Main, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([*small, "name=far", "method={kind: adamw, lr: 1e30}", "training.epochs=3"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: diverged at step 4 of 12: ")
    assert "use a smaller method.lr (now 1e+30)" in line
    (run,) = recorded(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.info.status == "FAILED"
    assert run.data.tags["diverged"] == "true"
    assert run.data.tags["failure"] == line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        (
            "{kind: proximal_score, metric: posterior, paired: true, effective_data_size: 1e+5, prior: {scale: 0.1}, "
            "max_mean_step: 1.0e+30, initial_precision: 1e-12, penalty: {mean: 1e-20}}",
            r"method\.",
        ),
        ("{kind: ensemble, members: 2, of: {kind: sgd, lr: 1e30}}", "a smaller method.of.lr"),
    ],
    ids=["posterior", "ensemble"],
)
def test_divergence_has_an_error_of_its_own_for_any_method(method: str, remedy: str, small: list[str]) -> None:
    config = configuration.load(overrides=[*small, "name=far", f"method={method}"])
    with pytest.raises(DivergedError, match=rf"^diverged at step \d+ of \d+: .*{remedy}"):
        launch.run(config, lambda line: None)


def test_a_run_that_ends_worse_than_it_began_says_so_though_its_numbers_are_finite(
    train: Main, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With lr 1e30 the adaptive metric bounds no step: curvature alone does, and means wander by 1e8 of their sds."""
    assert train([*small, "name=far", "method={kind: proximal_score, lr: 1e30}", "training.epochs=3"]) == 0
    told = capsys.readouterr().out
    assert "its mean predicts validation data worse" in told
    (run,) = recorded(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.data.tags["verdict"] != "converged"
    assert "its mean predicts validation data worse" in run.data.tags["verdict.lines"]


def test_a_forecast_of_nan_is_divergence(small: list[str]) -> None:
    config = configuration.load(
        overrides=[
            *("name=far", "training.workers=0", "training.epochs=1", "training.device=cpu", "training.batch_size=50"),
            *(
                "task={kind: forecasting, horizon: 4, context: 8, data: {kind: births}}",
                "method={kind: adamw, lr: 1e30}",
            ),
        ]
    )
    with pytest.raises(DivergedError, match=r"diverged at step \d+ of \d+: .*use a smaller method\.lr \(now 1e\+30\)"):
        launch.run(config, lambda line: None)


def test_paths_of_the_users_folder(
    train: Main, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home of # ada?"
    (home / "configs").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (home / "configs" / "one.yaml").write_text("name: home\n")
    paths = ["--config", "~/configs/one.yaml", "training.storage=~/runs", "--result", "~/result.json"]
    assert train([*small, *paths, "tracking.uri=sqlite:///~/mlflow.db"]) == 0
    assert json.loads((home / "result.json").read_text())["runs"][0]["folder"].startswith(str(home / "runs"))
    assert sorted(file.name for file in home.iterdir()) == [
        "configs",
        "mlartifacts",
        "mlflow.db",
        "result.json",
        "runs",
    ]
    assert [file.name for file in tmp_path.iterdir()] == [home.name]
    data = configuration.load(overrides=["task.data={kind: image_folder, path: ~/images}"]).task.data
    assert data.path == home / "images"  # type: ignore[union-attr]


def test_a_password_reaches_no_file_no_param_and_no_line(
    train: Main, small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SQLite takes no password, but a query of its URI looks like one."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}?password=s3cr3t"
    assert train([*small, "name=secret", f"tracking.uri={uri}", "--result", "result.json"]) == 0
    assert train([*small, "--print-config", f"tracking.uri={uri}"]) == 0
    out, err = capfd.readouterr()
    assert "s3cr3t" not in out + err
    assert "password=***" in out
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"s3cr3t" in file.read_bytes()]
