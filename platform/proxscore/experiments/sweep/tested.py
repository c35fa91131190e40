"""The winner's run goes on from its last checkpoint, where it ends, to the test split."""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="arg-type"

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import ray

from proxscore.config import Config
from proxscore.experiments import runner
from proxscore.tasks import Task
from proxscore.tracking import Recorder
from proxscore.training.loop.train import train
from proxscore.training.ray import cluster, trainer
from proxscore.training.worker import Worker


def run(config: Config, name: str, recorder: Recorder) -> tuple[dict[str, Any], Path]:
    """Test a trial's run.

    One of one worker is tested in this process, where the cluster is this machine: it has imported everything. On a cluster of
    several, this process may be on a node without a GPU.

    Returns:
        The results, and the folder of the checkpoint that holds posterior and figures.
    """
    if not runner.in_one_process(config):
        results, checkpoint = trainer.train_on_ray(config, config.method, config.training.epochs, name, recorder)
        return results, trainer.local_folder(checkpoint)
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return _here(config, name, recorder)
    each = cluster.resources_per_worker(config)
    task = ray.remote(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0))(_here)
    found: tuple[dict[str, Any], Path] = ray.get(task.remote(config, name, recorder))
    return found


def _here(config: Config, name: str, recorder: Recorder) -> tuple[dict[str, Any], Path]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a checkpoint of one process: it is
        results = runner.run(_measured, config, name, recorder, {})
    return results, runner.local_worker(config, name, recorder).folders()[-1]


def _measured(config: Config, task: Task, worker: Worker, settings: dict[str, Any]) -> dict[str, Any]:
    return train(config, config.method, config.training.epochs, task, worker)
