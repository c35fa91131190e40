"""A plain run that is killed again and again, at whatever moment, ends as the one that was left alone: bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

KILLS = int(os.environ.get("SOAK_KILLS", "20"))
SETTINGS = [
    "task={kind: vision, model: {name: small_cnn, kwargs: {width: 4, hidden: 8}}, data: {kind: digits, limit: 200}}",
    "training={device: cpu, workers: 0, batch_size: 50, epochs: 300, validate_every: 50, checkpoint_every: 2}",
    "training.loader_processes=1",
    "evaluation.draws=4",
    "tracking.interval=0.3",
]


def start(repository: Path, folder: Path, name: str) -> subprocess.Popen[str]:
    """The job, with all processes that it starts in a group of its own."""
    command = [
        sys.executable,
        str(repository / "jobs" / "train.py"),
        f"name={name}",
        *SETTINGS,
        "--result",
        f"{name}.json",
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "MLFLOW"))}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the job and its workers."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def await_writing(process: subprocess.Popen[str], file: Path) -> None:
    """Return while ``file`` is being written, or just after, or when the process has ended."""
    before = file.stat().st_mtime_ns if file.exists() else None
    while process.poll() is None:
        for entry in os.scandir(file.parent) if file.parent.is_dir() else ():
            if entry.name.endswith(file.name) and entry.name != file.name:
                return
        if file.exists() and file.stat().st_mtime_ns != before:
            return


def await_training(process: subprocess.Popen[str]) -> None:
    """Return when the job has shown a line of progress, or ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if " · step " in line:
            return


def points(client: MlflowClient, run_id: str) -> dict[str, Counter[int]]:
    """How often each metric but those of the machine was recorded at each step."""
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith(("nll/", "validation/", "test/"))]
    return {name: Counter(point.step for point in client.get_metric_history(run_id, name)) for name in names}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_at_random_moments_is_the_undisturbed_one(repository: Path, tmp_path: Path) -> None:
    calm = start(repository, tmp_path, "calm")
    output, _ = calm.communicate()
    assert calm.returncode == 0, output
    moments = random.Random(0)
    file = tmp_path / "runs" / "shaken-proximal_score" / "run.json"
    finished_early = 0
    for number in range(KILLS):
        process = start(repository, tmp_path, "shaken")
        if number % 4 == 1:  # once the run is known, so that there is a file to lose
            await_writing(process, file)
        elif number % 4 == 2:  # whatever it is at: imports, data, checks, the first use of the database, restoring
            time.sleep(moments.uniform(0.0, 12.0))
        else:
            await_training(process)
            time.sleep(moments.uniform(0.0, 1.5))
        finished_early += process.poll() is not None
        if process.poll() is None:
            kill(process)
        else:
            assert process.returncode == 0, process.communicate()[0]
        if file.exists():
            assert json.loads(file.read_text())["run_id"]
    last = start(repository, tmp_path, "shaken")
    output, _ = last.communicate()
    assert last.returncode == 0, output
    assert finished_early < KILLS / 2  # else it was hardly killed
    results: dict[str, Any] = {
        name: json.loads((tmp_path / f"{name}.json").read_text())["runs"][0] for name in ("calm", "shaken")
    }
    for key in ("test", "steps", "evaluations"):
        assert results["shaken"][key] == results["calm"][key]
    ours, theirs = (
        load_file(Path(results[name]["folder"]) / "posterior" / "posterior.safetensors") for name in ("shaken", "calm")
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    recorded = {name: points(client, results[name]["mlflow_run_id"]) for name in ("calm", "shaken")}
    assert recorded["shaken"] == recorded["calm"]
    assert sorted(recorded["calm"]["nll/train"].items()) == [(step, 1) for step in range(1, 1201)]
    assert set(recorded["calm"]["test/nll"].values()) == {1}
    assert client.get_run(results["shaken"]["mlflow_run_id"]).info.status == "FINISHED"
