"""Trials of one worker: Ray Tune's processes train them one after another, to the numbers of a plain run."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from small_sweeps import ledger, tree

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.experiments.sweep import job
from proxscore.experiments.sweep.plan import plan
from proxscore.experiments.sweep.settings import TuneConfig
from proxscore.experiments.sweep.space import Domain, applied
from proxscore.experiments.sweep.trial import name_of, validated
from proxscore.training.local.worker import LocalWorker

WIDTH = "task.model.kwargs.width"  # a network of width 0 cannot be built: such a trial fails
ONE = {"workers": 1, "cpus_per_worker": 2, "checkpoint_every": 1, "keep_checkpoints": 9}  # two at a time
SPACE = {
    "method.max_mean_step": Domain(loguniform=[0.01, 0.8]),
    "method.draws": Domain(randint=[1, 2]),
    WIDTH: Domain(randint=[0, 4]),
}


def sweep(folder: Path, training: dict[str, Any], **tune: Any) -> tuple[Config, list[str]]:
    """Runs a sweep; its configuration, and the lines that it showed."""
    config, shown = configuration.parse(tree(folder, training=training)), list[str]()
    job.run(plan(config, TuneConfig(search="random", top=1, seeds=[0], space=SPACE, **tune)), shown.append)
    return config, shown


def actors() -> Counter[str]:
    """Processes that this driver has started for actors of a class, whether they live or not."""
    own = ray.get_runtime_context().get_job_id()
    table = ray._private.state.actors(job_id=ray.JobID.from_hex(own))  # type: ignore[attr-defined]
    return Counter(found["ActorClassName"] for found in table.values())


@pytest.fixture(scope="module")
def swept(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config, Counter[str]]:
    """Six trials, two at a time: some finish, some are stopped early, one fails."""
    folder, before = tmp_path_factory.mktemp("sweep"), actors()
    config, _ = sweep(folder, ONE, trials=6, seed=3)
    return folder, config, actors() - before


Found = tuple[Path, Config, Counter[str]]


def test_no_group_of_workers_is_started_and_processes_are_kept(swept: Found) -> None:
    _, _, started = swept
    assert not any("Train" in name for name in started), started
    assert 1 <= started.total() < len(ledger(swept[0])["trials"]), started


def plain(folder: Path, config: Config, trial: dict[str, Any]) -> tuple[dict[str, Any], list[float]]:
    """A trial's settings, or what its folder holds, in this process: what it comes to, and the loss of each step."""
    changed, losses = applied(config, trial["params"]), list[float]()
    worker = LocalWorker(
        folder,
        torch.device("cpu"),
        lambda payloads: losses.extend(record["train/nll"] for record in payloads[0]["records"]),
        keep=9,
    )
    cost = changed.method.evaluations_per_step() / config.method.evaluations_per_step()
    settings = {"until": trial["epochs"] / cost, "start": None, "before": str(folder)}
    return validated(changed, changed.task.build(), worker, settings), losses


def test_a_trial_has_the_numbers_of_a_plain_run_whatever_its_process_has_trained_before(
    swept: Found, tmp_path: Path
) -> None:
    folder, config, _ = swept
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    finished = [trial for trial in ledger(folder)["trials"] if trial["status"] == "finished"]
    assert finished
    assert finished[-1]["number"] >= 2  # not the first of its process
    for trial in (finished[0], finished[-1]):
        expected, losses = plain(tmp_path / str(trial["number"]), config, trial)
        assert trial["final"] == pytest.approx(expected["final"], rel=1e-5)
        points = client.get_metric_history(trial["run_id"], "nll/train")
        assert [point.value for point in points] == pytest.approx(losses, rel=1e-5)


def test_a_trial_that_was_stopped_early_goes_on_where_it_was(swept: Found, tmp_path: Path) -> None:
    folder, config, _ = swept
    stopped = [trial for trial in ledger(folder)["trials"] if trial["status"] == "stopped"]
    assert stopped
    trial = stopped[0]
    expected, losses = plain(tmp_path, config, trial)
    found, rest = plain(folder / "runs" / "sweep" / "trials" / name_of(trial["number"]), config, trial)
    assert 0 < len(rest) < len(losses)
    assert rest == pytest.approx(losses[-len(rest) :], rel=1e-5)
    assert found["final"] == pytest.approx(expected["final"], rel=1e-5)


def test_a_trial_that_fails_is_recorded_with_its_error_and_others_come_after_it(swept: Found) -> None:
    folder, _, _ = swept
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    trials = ledger(folder)["trials"]
    failed = [trial for trial in trials if trial["status"] == "failed"]
    assert failed
    assert failed[0]["number"] < len(trials) - 1
    for trial in trials:
        assert (trial["status"] == "failed") == (trial["params"].get(WIDTH) == 0)
    for trial in failed:
        assert trial["error"].startswith("task.model small_cnn cannot take 1x8x8 images")
        run = client.get_run(trial["run_id"])
        assert (run.info.status, run.data.tags["failure"]) == ("FAILED", trial["error"])


def on_two_nodes(folder: Path) -> Counter[str]:
    """A sweep from a node that has no CPU for its trials; what was started."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        ray.init(cluster.address, log_to_driver=False)
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        sweep(folder, ONE | {"cpus_per_worker": 1}, trials=2, seed=3)
        return actors()
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_trials_on_other_nodes_are_recorded_from_the_sweeps(tmp_path: Path) -> None:
    with multiprocessing.get_context("forkserver").Pool(1) as alone:  # this process may have a cluster of its own
        started = alone.apply(on_two_nodes, (tmp_path,))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    trials = ledger(tmp_path)["trials"]
    assert len(trials) == 2
    assert started["Recorder"] == 3  # of each trial, and of the winner's test
    assert all(client.get_metric_history(trial["run_id"], "nll/train") for trial in trials)
    assert any("test/nll" in client.get_run(trial["run_id"]).data.metrics for trial in trials)
