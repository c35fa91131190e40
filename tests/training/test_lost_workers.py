"""Real Ray workers that are killed: the same name goes on from the last checkpoint, and each step counts once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cluster_runs import curve, tree
from mlflow import MlflowClient

from proxscore.config import Config
from proxscore.posterior import Posterior
from proxscore.training import launch
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.training.sharding import meshes
from proxscore.vision.image_task import ImageTask

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(1500)]


@contextmanager
def killing_a_worker_after(checkpoints: int, run: Path) -> Iterator[list[int]]:
    """SIGKILL one of this session's training workers once the run has so many more checkpoints; yields whom it hit."""
    killed: list[int] = []
    before = len(list(run.glob("checkpoint_*")))
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.05):
            if len(list(run.glob("checkpoint_*"))) >= before + checkpoints:
                # Only those that came from this process: other clusters may run here.
                family = psutil.Process(os.getpid()).children(recursive=True)
                worker = next(p for p in family if p.is_running() and "RayTrainWorker" in " ".join(p.cmdline()))
                os.kill(worker.pid, signal.SIGKILL)
                killed.append(worker.pid)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


LOST: dict[str, Any] = {"epochs": 16, "validate_every": 10, "keep_checkpoints": 1000}


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended with the loss of a worker: no retries."""
    folder = tmp_path_factory.mktemp("lost")
    run = folder / "runs" / "lost-proximal_score"
    with killing_a_worker_after(6, run) as killed, pytest.raises(RuntimeError, match=r"^training failed: ") as failure:
        launch.run(tree(folder, "lost", workers=2, max_failures=0, **LOST))
    assert len(killed) == 1
    assert "\n" not in str(failure.value)
    found = run_in(folder)
    assert found.info.status == "FAILED"
    assert found.data.tags["failure"] == str(failure.value)
    assert 6 <= len(list(run.glob("checkpoint_*"))) < LOST["epochs"]
    return folder


def run_in(folder: Path) -> Any:
    """The run called lost, which is one."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (found,) = client.search_runs(
        [client.get_experiment_by_name("proxscore").experiment_id], "tags.name = 'lost-proximal_score'"
    )
    return found


def copied(lost: Path, folder: Path) -> Path:
    """The folder of the lost run, and what is recorded of it, elsewhere: there, too, its name continues it."""
    return Path(shutil.copytree(lost, folder / "elsewhere"))


def test_lost_workers_cost_no_more_than_the_steps_since_the_last_checkpoint(lost: Path, tmp_path: Path) -> None:
    """The first loss ended the run; the same name continues it, and then a second loss is mended within."""
    epochs, folder = LOST["epochs"], copied(lost, tmp_path)
    run, before = folder / "runs" / "lost-proximal_score", run_in(lost).info.run_id
    again = tree(folder, "lost", workers=2, max_failures=1, **LOST)
    with killing_a_worker_after(6, run) as killed:
        (outcome,) = launch.run(again)
    assert len(killed) == 1
    # Had either attempt started from the beginning, six or more checkpoints would have been written again. Two may be,
    # per loss: one that waits for the controller's poll, and one that is being written when the worker is lost.
    assert epochs <= len(list(run.glob("checkpoint_*"))) <= epochs + 4

    ended = run_in(folder)
    assert outcome.run_id == ended.info.run_id == before
    assert ended.info.status == "FINISHED"
    assert "failure" not in ended.data.tags
    # Two processes without Ray, none of which is lost, are the same run bit for bit.
    config = tree(tmp_path, "unbroken", workers=2, **LOST)
    mp.start_processes(unbroken, (config, str(tmp_path)), nprocs=2, start_method="forkserver")
    whole = json.loads((tmp_path / "unbroken.json").read_text())
    losses = curve(again, outcome.run_id)
    assert list(losses) == list(range(1, 4 * epochs + 1))
    for step, values in losses.items():
        assert len(values) == 1, f"step {step} was recorded {len(values)} times"
        assert values == [whole["losses"][str(step)]]
    assert outcome.results["test"] == whole["test"]
    ours, theirs = (Posterior.load(folder) for folder in (outcome.folder / "posterior", Path(whole["posterior"])))
    for group in ("mean", "precision"):
        for name, tensor in getattr(ours, group).items():
            assert torch.equal(tensor, getattr(theirs, group)[name]), name


def unbroken(rank: int, config: Config, folder: str) -> None:
    """One of two processes of a run; the first leaves its losses and results."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    losses: dict[int, float] = {}

    def sink(reports: list[dict[str, Any]]) -> None:
        losses.update({record["step"]: record["train/nll"] for record in reports[0]["records"]})

    arrangement = meshes.build_meshes(config, config.method, "cpu", 2)
    worker = LocalWorker(Path(folder) / "unbroken", torch.device("cpu"), sink, 1, arrangement)
    results = train(config, config.method, config.training.epochs, ImageTask(config.task), worker)
    if rank == 0:
        left = {"losses": losses, "test": results["test"], "posterior": str(worker.folders()[-1] / "posterior")}
        (Path(folder) / "unbroken.json").write_text(json.dumps(left))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_fewer_workers_go_on_where_more_were_lost_in_any_file_system(lost: Path, tmp_path: Path) -> None:
    """Two workers, one of which was killed; then one, with checkpoints in a file system of fsspec's. Each step counts once,
    and the losses are those of one process (float32, in other orders)."""
    folder = copied(lost, tmp_path)
    settings = LOST | {"storage": f"local://{folder}/runs"}
    config = tree(folder, "lost", workers=1, **settings)
    reached = max(curve(config, run_in(lost).info.run_id))
    (outcome,) = launch.run(config)
    assert outcome.run_id == run_in(lost).info.run_id
    assert 0 < reached < outcome.results["steps"] == 64
    alone = tree(tmp_path, "one", workers=0, **LOST)
    (expected,) = launch.run(alone)
    losses, theirs = curve(config, outcome.run_id), curve(alone, expected.run_id)
    assert list(losses) == list(theirs) == list(range(1, 65))
    for step, (value,) in losses.items():  # rounding grows from 1e-7 to 1e-2 once the posterior moves far in a step
        assert value == pytest.approx(theirs[step][0], abs=1e-3 if step <= 40 else 0.05)
