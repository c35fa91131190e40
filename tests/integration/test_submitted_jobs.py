"""Every job, submitted to two nodes with a token and a tracking server as the README says: exit codes, logs, what is left."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

import proxscore

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import RayHead

QUICKSTART = ("python", "jobs/train.py", "--config", "jobs/configs/quickstart.yaml")
CPUS = 3  # of a worker: each of the two nodes has 4, and holds one
TINY = (
    "task.model.kwargs={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}",
    *("task.data.limit=200", "training.batch_size=50", "evaluation.shifts=[]", "evaluation.draws=2", "baseline=null"),
    f"training.cpus_per_worker={CPUS}",
)
FORECASTS = (
    *("python", "jobs/train.py", "--config", "jobs/configs/forecast_quickstart.yaml", "baseline=null", "name=demand"),
    *("training.epochs=1", "training.workers=1", "task.train_stride=96", "evaluation.draws=2"),
    *("task.data.test_windows=1", "task.data.validation_windows=1"),
)
COMPARISON = """
name: pair
budget: 2
seeds: [0]
base:
  task: {model: {name: small_cnn, kwargs: {width: 4, hidden: 8}}, data: {kind: digits, limit: 200}}
  training: {batch_size: 50}
  evaluation: {draws: 2}
methods:
  AdamW: {method: {kind: adamw}}
  ours: {method: {kind: proximal_score}}
"""
SWEEP = (
    *("python", "jobs/tune.py", "--config", "jobs/configs/tune_digits.yaml", "task.data.limit=200", "name=sweep"),
    *("tune.trials=2", "tune.top=1", "tune.seeds=[0]", "training.epochs=1", "training.workers=1"),
)


@dataclass(frozen=True)
class Cluster:
    """Two nodes, a tracking server, and a folder that both nodes and these tests see."""

    head: RayHead
    repository: Path
    tracking: str
    folder: Path

    def command(self, *entrypoint: str) -> list[str]:
        """As the README has it; the server's address is in the environment of a real head, which ours outlives."""
        submit = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--"]
        return [*submit, "env", f"MLFLOW_TRACKING_URI={self.tracking}", *entrypoint]

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*entrypoint),
            cwd=self.repository,
            env=self.head.env,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def run(self, name: str) -> Run:
        client = MlflowClient(self.tracking)
        experiment = client.get_experiment_by_name("proxscore")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], f"tags.name = '{name}'")
        return run


@contextmanager
def process(command: list[str], folder: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the context, and all that came from it."""
    with (folder / f"{Path(command[0]).name}.log").open("w") as log:
        started = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield started
    finally:
        family = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
        for each in (started, *family):
            with suppress(psutil.NoSuchProcess):  # it ended with another
                each.kill()
        started.wait(timeout=30)


@pytest.fixture(scope="module")
def cluster(ray_head: RayHead, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    port = free_port()
    tracking = f"http://127.0.0.1:{port}"
    server = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *(
            "--backend-store-uri",
            f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination",
            str(folder / "artifacts"),
        ),
    ]
    quiet = ray_head.env | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # A folder of its own: two nodes that share one on one machine take the unpacked job from under each other.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as own:
        node = [
            *("ray", "start", f"--address={ray_head.address}", "--block", "--disable-usage-stats"),
            *(f"--temp-dir={own}", "--node-ip-address=127.0.0.1", "--num-cpus=4", "--object-store-memory=200000000"),
        ]
        with process(server, folder, quiet), process(node, folder, ray_head.env):
            wait_for(lambda: answers(f"{tracking}/health"))
            wait_for(lambda: alive_nodes(ray_head) == 2)
            yield Cluster(ray_head, repository, tracking, folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.3)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def alive_nodes(head: RayHead) -> int:
    found = subprocess.run(["ray", "status"], env=head.env, capture_output=True, text=True, timeout=60).stdout
    active = found.partition("Active:")[2].partition("Pending:")[0]
    return len(re.findall(r"^ \d+ node_", active, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def trained(cluster: Cluster) -> str:
    """The log of a job that trained on both nodes."""
    storage = f"training.storage={cluster.folder / 'runs'}"
    own = ("name=submitted", "tracking.register_as=submitted")
    done = cluster.submit(*QUICKSTART, *TINY, "training.epochs=1", storage, *own)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_submitted_job_trains_on_both_nodes_and_records_its_run(cluster: Cluster, trained: str) -> None:
    assert "submitted-proximal_score · step 4/4 (epoch 1.0)" in trained
    rows = [line for line in trained.splitlines() if line.startswith("posterior ")][:2]  # of the first table
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == ["posterior mean", "posterior"]
    assert "registered submitted version 1, champion" in trained
    assert not [line for line in trained.splitlines() if "pid=" in line or "PreemptionWatcher" in line]
    assert "note: " not in trained  # nothing is written where it would vanish

    client, run = MlflowClient(cluster.tracking), cluster.run("submitted-proximal_score")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.workers"] == "2"
    assert f"{run.data.metrics['test/nll']:.4f}" in rows[1]
    assert len(client.get_metric_history(run.info.run_id, "nll/train")) == 4
    artifacts = {Path(item.path).name for item in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"config.yaml", "figures"}
    assert client.get_model_version_by_alias("submitted", "champion").run_id == run.info.run_id
    assert (cluster.folder / "runs" / "submitted-proximal_score" / "run.json").is_file()


def output_of(cluster: Cluster, name: str) -> Path:
    return cluster.folder / name


def jobs(cluster: Cluster, name: str) -> tuple[tuple[str, ...], str, Path]:
    """A job's command, what its log says, and what it leaves."""
    folder = cluster.folder
    output, storage = output_of(cluster, name), f"training.storage={folder / 'runs'}"
    match name:
        case "evaluate":
            source = f"runs:/{cluster.run('submitted-proximal_score').info.run_id}"
            evaluate = ("python", "jobs/evaluate.py", source, "--draws", "2", "--output", str(output))
            return evaluate, "digits, test split, 2 draws", output / "digits_test_2_draws.json"
        case "report":
            source = f"runs:/{cluster.run('submitted-proximal_score').info.run_id}"
            report = ("python", "jobs/evaluate.py", source, "--report", "--draws", "2", "--shift-rows", "20")
            return (*report, "--output", str(output)), "under report/", output / "report.html"
        case "predict":
            (folder / "digits").mkdir()
            for shade in range(0, 250, 10):
                Image.new("L", (8, 8), shade).save(folder / "digits" / f"{shade:03d}.png")
            predict = ("python", "jobs/predict.py", "models:/submitted@champion", str(folder / "digits"))
            return (
                (*predict, "--output", str(output), "--workers", "2"),
                "25 images of",
                output / "part-00000-of-00001.parquet",
            )
        case "prepare_data":
            for label in "ab":
                (folder / "pictures" / label).mkdir(parents=True)
                for shade in (0, 100):
                    Image.new("L", (8, 8), shade + ord(label)).save(folder / "pictures" / label / f"{shade}.png")
            prepare = ("python", "jobs/prepare_data.py", str(folder / "pictures"), str(output))
            return prepare, "classes    2: a, b", output / "dataset.json"
        case "train a forecaster":
            return (*FORECASTS, storage), "demand: test split", folder / "runs" / "demand-proximal_score" / "run.json"
        case "forecast":
            [posterior] = (folder / "runs" / "demand-proximal_score").glob("checkpoint_*/posterior")
            table = output.with_suffix(".parquet")
            forecast = ("python", "jobs/forecast.py", str(posterior), "--draws", "2", "--output", str(table))
            return forecast, "1 series x 48 steps", table
        case "compare":
            output.with_suffix(".yaml").write_text(COMPARISON)
            compare = ("python", "jobs/compare.py", "--config", str(output.with_suffix(".yaml")))
            return (*compare, f"base.training.storage={folder / 'runs'}"), "ours", folder / "runs" / "pair" / "report"
        case "tune":
            return (*SWEEP, storage), "leaderboard", folder / "runs" / "sweep"
    raise AssertionError(name)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    "name",
    [
        # Of a registered model, by workers. What a job does by itself is in the tests of jobs; training is submitted above.
        pytest.param("predict", marks=pytest.mark.slow),
        pytest.param("evaluate", marks=pytest.mark.slow),
        pytest.param("prepare_data", marks=pytest.mark.slow),
        pytest.param("report", marks=pytest.mark.slow),
        pytest.param("train a forecaster", marks=pytest.mark.slow),
        pytest.param("forecast", marks=pytest.mark.slow),
        pytest.param("compare", marks=pytest.mark.slow),
        pytest.param("tune", marks=pytest.mark.slow),
    ],
)
def test_a_submitted_job_succeeds_says_so_and_leaves_what_it_names(name: str, cluster: Cluster) -> None:
    command, said, left = jobs(cluster, name)
    done = cluster.submit(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    assert left.exists()
    assert "note: " not in done.stdout
    if name == "predict":  # the numbers are those of this process
        tracking = [f"tracking.uri={cluster.tracking}"]
        expected = proxscore.load("models:/submitted@champion", overrides=tracking).predict(cluster.folder / "digits")
        found = pd.read_parquet(output_of(cluster, name))
        np.testing.assert_allclose(found["confidence"], expected.confidence.numpy(), atol=1e-5)


def test_a_submitted_job_that_is_refused_fails_with_its_one_line_and_says_what_would_vanish(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = cluster.submit("python", "jobs/evaluate.py", str(tmp_path / "nothing"), "--output", "scores")
    assert done.returncode != 0
    # `ray job submit` repeats the end of the log when a job failed.
    lines = set((done.stdout + done.stderr).splitlines())
    (line,) = {line for line in lines if line.startswith("error: ")}
    assert str(tmp_path / "nothing") in line
    (note,) = {line for line in lines if line.startswith("note: ")}
    assert note.startswith("note: --output scores is in this submitted job's own folder, which the cluster removes: ")


@pytest.mark.slow
def test_a_stopped_job_is_killed_and_goes_on_when_it_is_submitted_again(cluster: Cluster) -> None:
    entrypoint = (
        *(*QUICKSTART, *TINY, "training.epochs=200", "training.validate_every=200", "training.checkpoint_every=5"),
        *(f"training.storage={cluster.folder / 'runs'}", "name=stopped", "tracking.interval=0.5"),
    )
    submitted = subprocess.Popen(
        cluster.command(*entrypoint), cwd=cluster.repository, env=cluster.head.env, stdout=subprocess.PIPE, text=True
    )
    assert submitted.stdout is not None
    job = None
    for line in submitted.stdout:
        job = job or re.search(r"raysubmit_\w+", line)
        if " · step " in line and "checkpoint" in line:
            break
    assert job is not None
    stopped = subprocess.run(["ray", "job", "stop", job[0]], env=cluster.head.env, capture_output=True, timeout=100)
    rest = submitted.communicate(timeout=100)[0]
    assert stopped.returncode == 0
    assert "interrupted: the run is marked KILLED; the same name resumes it from its last checkpoint" in rest
    first = cluster.run("stopped-proximal_score")
    assert first.info.status == "KILLED"

    again = cluster.submit(*entrypoint)
    assert again.returncode == 0, again.stdout + again.stderr
    run = cluster.run("stopped-proximal_score")  # one run of this name
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    history = MlflowClient(cluster.tracking).get_metric_history(run.info.run_id, "nll/train")
    assert [point.step for point in history] == list(range(1, 801))  # nothing lost, nothing twice
    began = min(int(step) for step in re.findall(r" · step (\d+)/800", again.stdout))
    assert began > 20  # not from the start


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "RAY_AUTH_TOKEN_PATH"),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}, "Failed to connect to Ray at address: http://127.0.0.1:9."),
    ],
)
def test_without_address_or_token_rays_last_lines_say_what_is_missing(
    environment: dict[str, str], said: str, ray_head: RayHead, repository: Path
) -> None:
    """The README says what these mean."""
    done = subprocess.run(
        ["ray", "job", "list"],
        cwd=repository,
        env=ray_head.env | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert said in "".join(done.stderr.splitlines(keepends=True)[-4:])
