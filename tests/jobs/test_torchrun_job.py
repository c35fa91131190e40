"""The training job under torchrun: processes without Ray, one run, the result of one process; and what it says of itself."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main

VIT = "{patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}"


def torchrun(
    repository: Path, folder: Path, processes: int, *arguments: str, script: str = "train"
) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, str(repository / "jobs" / f"{script}.py"), *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def vit() -> list[str]:
    return [
        "name=processes",
        "task.model.name=vit_tiny_patch16_224",
        f"task.model.kwargs={VIT}",
        "task.data={kind: digits, limit: 200}",
        "baseline.kind=adamw",
        "training.device=cpu",
        "training.batch_size=50",
        "training.epochs=4",
        "method.draws=2",
    ]


@pytest.fixture(scope="module")
def two(repository: Path, vit: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Two processes, which score different draws: folder, result, what they printed."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(repository, folder, 2, *vit, "training.draw_groups=2", "--profile", "--result", "two.json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "two.json").read_text()), done.stdout


def test_two_processes_give_the_metrics_of_one(
    two: tuple[Path, dict[str, Any], str], train: Main, vit: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train([*vit, "training.workers=0", "--result", "one.json"]) == 0  # in this process
    one = json.loads((tmp_path / "one.json").read_text())
    for ours, theirs in zip(two[1]["runs"], one["runs"], strict=True):
        assert ours["steps"] == theirs["steps"]
        for variant, metrics in theirs["test"].items():
            assert ours["test"][variant] == pytest.approx(metrics, abs=1e-3)


def test_a_posterior_in_shards_is_judged_as_in_one_process(
    two: tuple[Path, dict[str, Any], str],
    repository: Path,
    evaluate: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(two[1]["runs"][1]["folder"]) / "posterior"
    job = [str(folder), "training.device=cpu", "--draws", "3", "--output"]
    done = torchrun(repository, tmp_path, 2, *job, "two", script="evaluate")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test split") == 1
    monkeypatch.chdir(tmp_path)
    assert evaluate([*job, "one"]) == 0  # in this process
    assert capsys.readouterr().out.count("test split") == 1
    ours, theirs = (json.loads((tmp_path / name / "digits_test_3_draws.json").read_text()) for name in ("two", "one"))
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-5)
    assert {key: ours[key] for key in ("draws", "split", "data")} == {
        key: theirs[key] for key in ("draws", "split", "data")
    }


def test_one_process_speaks_and_records(two: tuple[Path, dict[str, Any], str]) -> None:
    folder, result, output = two
    assert output.count("test split") == 1
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
    assert sorted(run.info.run_id for run in runs) == sorted(run["mlflow_run_id"] for run in result["runs"])
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.params["training.workers"] == "2"
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "nll/train")]
        assert steps == list(range(1, len(steps) + 1))


def test_a_run_says_where_its_time_goes_how_fast_its_ranks_are_and_leaves_traces(
    two: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    folder, result, output = two
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    for described in result["runs"]:
        metrics = client.get_run(described["mlflow_run_id"]).data.metrics
        parts = [metrics[f"time/{part}"] for part in ("data", "forward_backward", "update")]
        assert all(0 < seconds < 60 for seconds in parts)
        rates = [metrics[f"system/rank_{rank}/rows_per_second"] for rank in range(2)]
        assert metrics["train/rows_per_second"] == pytest.approx(sum(rates))
        assert all(0.1 < metrics[f"system/rank_{rank}/peak_memory_gb"] < 20 for rank in range(2))
        for rank in range(2):
            path = client.download_artifacts(described["mlflow_run_id"], f"profile/rank-{rank}.json.gz", str(tmp_path))
            events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
            names = {event.get("name") for event in events}
            assert {"aten::linear", "autograd::engine::evaluate_function: AddmmBackward0"} <= names
    assert "forward+backward" in output
    assert " GB" in output


def test_a_mistake_is_told_once_and_ends_all_processes(repository: Path, vit: list[str], tmp_path: Path) -> None:
    done = torchrun(repository, tmp_path, 2, *vit, "training.draw_groups=2", "method.draws=1")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told == ["error: method.draws=1 cannot be shared by training.draw_groups=2: it must be a multiple of them"]
