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
from proxscore.experiments.sweep import alone
from proxscore.tracking import Recorder
from proxscore.training.loop.train import train
from proxscore.training.ray import cluster, trainer


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
    task = ray.remote(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0))(_there)
    home = ray.get_runtime_context().get_node_id()
    found: tuple[dict[str, Any], Path] = ray.get(task.remote(config, name, recorder, home))
    return found


def _there(config: Config, name: str, recorder: Recorder, home: str) -> tuple[dict[str, Any], Path]:
    return _here(config, name, alone.at_home(recorder, home))


def _here(config: Config, name: str, sink: runner.Sink) -> tuple[dict[str, Any], Path]:
    with runner.local_worker(config, name, sink) as worker, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a checkpoint of one process: it is
        results = train(config, config.method, config.training.epochs, config.task.build(verify=False), worker)
    return results, worker.folders()[-1]
