"""SQLite databases: made whole and once by several first jobs, and found in folders of any name."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from proxscore.config import ConfigError, TrackingConfig
from proxscore.tracking import TrackedRun, browse, tracking_uri
from proxscore.tracking.databases import database, sqlite_uri
from proxscore.tracking.located import everywhere
from proxscore.tracking.runs import check_server

#: Waits for a file, so that all processes begin at once when they have imported everything.
FIRST_JOB = """
import sys, time
from pathlib import Path
from proxscore.tracking import TrackedRun
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
with TrackedRun(sys.argv[1], "first use", "a run").running() as run:
    run.metrics({"value": 1.0})
"""


def first_jobs(count: int, uri: str, go: Path) -> Sequence[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FIRST_JOB, uri, str(go)]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
    go.touch()
    return jobs


def test_several_first_jobs_at_once_are_all_recorded(tmp_path: Path) -> None:
    """Four: any two of them may be the first."""
    count = 4
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    for job in first_jobs(count, uri, tmp_path / "go"):
        _, errors = job.communicate(timeout=200)
        assert job.returncode == 0, errors
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("first use")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"value": 1.0})] * count
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["mlflow.db"]


def test_a_first_job_that_is_killed_leaves_no_half_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for number, delay in enumerate((0.3, 0.8)):
        (job,) = first_jobs(1, uri, tmp_path / f"go-{number}")
        end = time.monotonic() + 60
        while not list(tmp_path.glob("*mlflow.db*")) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(delay)  # of some seconds that the tables take
        job.send_signal(signal.SIGKILL)
        job.communicate()
        if (tmp_path / "mlflow.db").exists():
            with sqlite3.connect(tmp_path / "mlflow.db") as held:
                assert held.execute("select count(*) from alembic_version").fetchone() == (1,)
    with TrackedRun(uri, "first use", "a run").running():
        pass


@pytest.mark.parametrize("name", ["what? 100%41", "a #b", "ü & ;'"])
def test_the_default_database_lies_in_the_current_folder_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_uri(TrackingConfig())
    assert database(uri) == folder / "mlflow.db"
    run = TrackedRun(uri, "names", "a run")
    run.text("content", "text.txt")
    assert sorted(file.name for file in folder.iterdir()) == ["mlartifacts", "mlflow.db"]
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with sqlite3.connect(folder / "mlflow.db") as held:
        assert held.execute("select run_uuid from runs").fetchall() == [(run.run_id,)]
    (text,) = (folder / "mlartifacts").glob("*/artifacts/text.txt")
    assert text.read_text() == "content"
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {browse(TrackingConfig(), run.run_id)}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines()[-1] == uri  # as a shell reads it


def test_a_database_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tracking_uri(TrackingConfig(uri="sqlite:///~/mlflow.db")) == sqlite_uri(tmp_path / "mlflow.db")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes no files")
def test_a_place_that_takes_no_file_is_refused_before_anything_is_tried() -> None:
    for place in ("/proc/x.db", "/proc/deeper/x.db"):
        with pytest.raises(ConfigError, match=f"tracking.uri sqlite:///{place}: cannot be used"):
            check_server(f"sqlite:///{place}")
        with pytest.raises(ConfigError, match=f"tracking.uri sqlite:///{place}: cannot be used"):
            TrackedRun(f"sqlite:///{place}", "x", "a run")


@pytest.mark.parametrize("environment", [{}, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}])
def test_a_server_for_a_while_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = tracking_uri(TrackingConfig())
    with everywhere(f"sqlite:///{tmp_path}/mlflow.db"):
        assert mlflow.get_registry_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(TrackingConfig()) == before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:10")
    assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == "http://127.0.0.1:10"
