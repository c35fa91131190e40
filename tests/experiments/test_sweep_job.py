"""jobs/tune.py as people run it: killed, taken up again with more trials, a worker lost, a failing trial, and MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_sweeps import Swept, ledger, lines, start, tree

from proxscore import config as configuration

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a quick one is in test_small_sweep.py

STEPS = 16  # of a run
TRIALS = 4
WIDTH = "task.model.kwargs.width"  # a network of width 0 cannot be built: such a trial fails
TUNE: dict[str, Any] = {
    "trials": TRIALS,
    "search": "random",
    "top": 1,
    "seeds": [0, 1],
    "seed": 8,  # the third trial fails
    "space": {
        "method.max_mean_step": {"loguniform": [0.05, 0.8]},
        "method.penalty.mean_schedule.kind": {"choice": ["constant", "cosine"]},
        WIDTH: {"choice": [4, 0]},
    },
}


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the driver; Ray's processes end by themselves, its agents are helped."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for survivor in psutil.wait_procs(family, timeout=30)[1]:
        survivor.kill()


def lose_a_worker(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the first worker that has trained for a moment."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(child.cmdline()) and child.cpu_times().user > 3:
                    child.kill()
                    return
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        time.sleep(0.1)
    pytest.fail("no worker to lose")


@pytest.fixture(scope="module")
def swept(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Killed after its first of two trials; then taken up with four, and a worker that is lost."""
    folder = tmp_path_factory.mktemp("sweep")
    content = tree(folder, training={"checkpoint_every": 0.5}) | {"tune": TUNE}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    outputs: list[list[str]] = [[], []]
    process = start(repository, folder, "tune.trials=2")
    for line in lines(process, outputs[0]):
        if line.startswith("search 1/"):
            break
    kill(process)
    killed = ledger(folder)
    process = start(repository, folder)
    for line in lines(process, outputs[1]):
        if line.startswith("search "):
            lose_a_worker(process)
            break
    for _ in lines(process, outputs[1]):
        pass
    assert process.wait() == 0, "".join(outputs[1])
    return Swept(folder, killed, ledger(folder), ["".join(output) for output in outputs])


def test_finished_trials_are_kept_and_those_that_ran_end_under_the_same_name(swept: Swept) -> None:
    before = {trial["number"]: trial for trial in swept.killed["trials"]}
    after = {trial["number"]: trial for trial in swept.ended["trials"]}
    kept = [number for number, trial in before.items() if trial["status"] != "running"]
    assert kept
    assert [after[number] for number in kept] == [before[number] for number in kept]
    for number, trial in before.items():
        assert after[number]["params"] == trial["params"]
        assert after[number]["run_id"] == (trial["run_id"] or after[number]["run_id"])  # none yet: it had just begun
    assert {trial["status"] for trial in after.values()} <= {"finished", "stopped", "failed"}


def test_a_sweep_may_grow(swept: Swept) -> None:
    searched = [trial["number"] for trial in swept.ended["trials"] if trial["stage"] == "search"]
    assert searched == list(range(TRIALS))
    assert "search 1/2" in swept.outputs[0]
    assert f"search {TRIALS}/{TRIALS}" in swept.outputs[1]


def test_a_run_that_lost_its_worker_has_every_step_once(swept: Swept) -> None:
    for trial in swept.ended["trials"]:
        if trial["status"] == "finished":
            points = swept.client.get_metric_history(trial["run_id"], "nll/train")
            assert [point.step for point in points] == list(range(1, STEPS + 1)), trial["number"]


def test_a_trial_that_fails_is_recorded_with_its_error_and_the_sweep_goes_on(swept: Swept) -> None:
    searched = [trial for trial in swept.ended["trials"] if trial["stage"] == "search"]
    for trial in searched:
        assert (trial["status"] == "failed") == (trial["params"].get(WIDTH) == 0)
    failed = [trial for trial in searched if trial["status"] == "failed"]
    assert failed
    assert failed[0]["number"] < TRIALS - 1  # others came after it
    for trial in failed:
        run = swept.client.get_run(trial["run_id"])
        assert run.info.status == "FAILED"
        assert run.data.tags["failure"] == trial["error"]
        assert trial["error"].startswith("task.model small_cnn cannot take 1x8x8 images")
        assert "\n" not in trial["error"]


def test_every_run_says_how_its_trial_ended(swept: Swept) -> None:
    statuses = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    assert swept.parent.info.status == "FINISHED"
    by_id = {run.info.run_id: run for run in swept.runs}
    assert len(by_id) == 1 + len(swept.ended["trials"])
    for trial in swept.ended["trials"]:
        run = by_id[trial["run_id"]]
        assert run.info.status == statuses[trial["status"]]
        assert run.data.tags["tune.status"].startswith(trial["status"])
        assert run.data.tags["mlflow.parentRunId"] == swept.parent.info.run_id


def test_the_test_split_is_looked_at_for_the_winner_alone(swept: Swept) -> None:
    parent = swept.parent
    winners = [r for r in swept.runs if "test/nll" in r.data.metrics and r.info.run_id != parent.info.run_id]
    assert sorted(run.data.params["seed"] for run in winners) == ["0", "1"]
    assert all(run.data.tags["tune.best"] == "true" for run in winners)
    mean = sum(run.data.metrics["test/nll"] for run in winners) / 2
    assert parent.data.metrics["test/nll"] == pytest.approx(mean)
    finals = {trial["run_id"]: trial["final"]["nll"] for trial in swept.ended["trials"] if trial["final"]}
    best = sum(finals[run.info.run_id] for run in winners) / 2
    given = [trial for trial in swept.ended["trials"] if not trial["params"]]
    assert sorted(trial["seed"] for trial in given) == [0, 1]
    assert best <= sum(trial["final"]["nll"] for trial in given) / 2
    assert parent.data.metrics["best/nll"] == pytest.approx(best)


def test_the_parent_has_figures_and_a_configuration_that_trains(swept: Swept, repository: Path, tmp_path: Path) -> None:
    run_id = swept.parent.info.run_id
    figures = {Path(item.path).stem for item in swept.client.list_artifacts(run_id, "figures")}
    assert figures == {
        *("objective_over_time", "learning_curves", "slices", "parallel_coordinates", "importance", "schedules")
    }
    uri = f"tracking.uri=sqlite:///{swept.folder / 'mlflow.db'}"
    command = [sys.executable, str(repository / "jobs" / "train.py"), "--config", f"mlflow:{run_id}", "--print-config"]
    printed = subprocess.run([*command, uri], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert printed.returncode == 0, printed.stderr
    best = configuration.load(swept.folder / "runs" / "sweep" / "best.yaml")
    assert configuration.parse(yaml.safe_load(printed.stdout)) == best
    assert best.name == "sweep-best"
    assert best.training.workers == 2


def test_the_winners_file_gives_the_winners_validation_nll(swept: Swept, repository: Path, tmp_path: Path) -> None:
    """In one plain process: the same steps as two workers', to float32's last digits."""
    file = swept.folder / "runs" / "sweep" / "best.yaml"
    overrides = [
        "training.workers=0",
        f"training.storage={tmp_path / 'runs'}",
        f"tracking.uri=sqlite:///{tmp_path / 'm.db'}",
    ]
    result = tmp_path / "result.json"
    command = [sys.executable, str(repository / "jobs" / "train.py"), "--config", str(file), "--result", str(result)]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(result.read_text())["runs"]
    winners = [r for r in swept.runs if r.data.tags.get("tune.best") == "true" and r.data.params["seed"] == "0"]
    assert run["test"]["posterior"]["nll"] == pytest.approx(winners[0].data.metrics["test/nll"], abs=2e-3)
