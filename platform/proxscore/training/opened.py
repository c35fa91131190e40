"""A saved posterior and its network, ready to be evaluated: in this process, or in shards on those that torchrun started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from proxscore.posterior import Posterior
from proxscore.tasks import Task
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.norm_rows import least_rows
from proxscore.training.local import torchrun
from proxscore.training.local.worker import LocalWorker
from proxscore.training.run import Run, sharded_module
from proxscore.training.saved import Described
from proxscore.training.sharding import meshes
from proxscore.training.worker import pick_device


def build_task(described: Described) -> Task:
    """The task that a posterior was trained on, with overrides."""
    task: Task = described.config.task.build(trained=described.description.get("data"))
    return task


def opened(described: Described, task: Task, folder: Path) -> tuple[Run, Posterior]:
    """Put a saved posterior's mean into its network, and make the run that predicts with it.

    Of processes that torchrun started, which must all call it within their process group, each builds the network (with
    ``training.meta_init``: only its shards), and reads its own shards of the posterior.

    Args:
        folder: where the evaluation is kept.

    Raises:
        ConfigError: a file is missing or damaged, or the posterior is of another architecture.
    """
    config = described.config
    device = torchrun.device(pick_device(config.training.device))
    if torchrun.launched():
        torch.manual_seed(config.seed)
        arrangement = meshes.build_meshes(config, config.method, device.type, config.training.workers)
        worker = LocalWorker(folder, device, lambda payloads: None, 1, arrangement)
        module = sharded_module(config, task, worker)
        posterior = Posterior.load(described.folder, like=module)
        posterior.load_into(module)
    else:
        worker = LocalWorker(folder, device, lambda payloads: None, keep=1)
        posterior = Posterior.load(described.folder)
        module = posterior.load_into(task.build_model()).to(device)
    # BatchNorm statistics of each draw come from training batches, as in training.
    rows, batch, part = task.data.train, config.training.batch_size, (worker.data_rank, worker.data_world)
    data = TrainingData(rows, batch, *part, config.seed, least=least_rows(module, task))
    return Run(config, task, worker, module, data), posterior


def with_processes(described: Described) -> Described:
    """The same with as many workers as torchrun started processes."""
    return replace(described, config=torchrun.with_process_count(described.config))
