"""A job that is interrupted leaves a run marked KILLED, and the same name continues it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main


def recorded(folder: Path) -> Run:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
    return run


def interrupt(repository: Path, folder: Path, overrides: list[str], number: signal.Signals, *, group: bool) -> str:
    """Start the job as a terminal does, in a process group of its own; signal it once it trains; returns its errors."""
    process = subprocess.Popen(
        [sys.executable, str(repository / "jobs" / "train.py"), *overrides],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if " · step " in line:
                break
        time.sleep(0.5)
        (os.killpg if group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=200)
    finally:
        for survivor in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            survivor.kill()
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130, errors
    assert (
        errors.rstrip().splitlines()[-1].startswith("interrupted: the run is marked KILLED; the same name resumes it")
    )
    return errors


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_job_is_killed_and_its_name_continues_it(
    number: signal.Signals,
    group: bool,
    repository: Path,
    train: Main,
    small: list[str],
    tmp_path: Path,
) -> None:
    overrides = [*small, "name=cut", "training.epochs=150", "training.validate_every=150"]
    errors = interrupt(repository, tmp_path, overrides, number, group=group)
    assert "Traceback" not in errors
    run = recorded(tmp_path)
    assert run.info.status == "KILLED"
    assert run.info.end_time is not None
    # The rest is trained in this process: 600 steps of 2 ms.
    assert train(overrides) == 0
    again = recorded(tmp_path)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    history = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_metric_history(run.info.run_id, "nll/train")
    assert [point.step for point in history] == list(range(1, 601))


def test_a_job_whose_process_is_killed_is_continued_by_its_name_with_nothing_lost_or_twice(
    repository: Path, train: Main, small: list[str], tmp_path: Path
) -> None:
    """SIGKILL, once there is a checkpoint and training has gone on from it; checkpoints at every fourth step."""
    checkpoints = tmp_path / "runs" / "killed-proximal_score" / "checkpoints"
    overrides = [*small, "name=killed", "training.epochs=150", "training.validate_every=150", "tracking.interval=0.2"]
    process = subprocess.Popen(
        [sys.executable, str(repository / "jobs" / "train.py"), *overrides],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    while not [*checkpoints.glob("step-*")] and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()
    process.wait()
    assert recorded(tmp_path).info.status == "RUNNING"  # nobody was left to say otherwise
    before = max(int(path.name[5:]) for path in checkpoints.glob("step-*"))
    assert 0 < before < 600
    assert train(overrides) == 0
    run = recorded(tmp_path)
    assert run.info.status == "FINISHED"
    history = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_metric_history(run.info.run_id, "nll/train")
    assert [point.step for point in history] == list(range(1, 601))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_job_with_workers_is_killed(
    number: signal.Signals, group: bool, repository: Path, small: list[str], tmp_path: Path
) -> None:
    workers = ["training.workers=2", "training.cpus_per_worker=0.5", "training.epochs=100000", "name=cut"]
    interrupt(repository, tmp_path, [*small, *workers, "training.checkpoint_every=100"], number, group=group)
    assert recorded(tmp_path).info.status == "KILLED"
