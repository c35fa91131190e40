"""A run: what is trained or evaluated, on what data, by which configuration, and on which worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from proxscore.config import Config, ConfigError
from proxscore.tasks import Task
from proxscore.training.data.batches import TrainingData, evaluation_batches
from proxscore.training.data.loading import training_loaders
from proxscore.training.data.micro_batches import Batch
from proxscore.training.data.norm_rows import least_rows
from proxscore.training.data.streamed import LEAST_ROWS, RayTrainingData, streamed_evaluation_batches
from proxscore.training.initial_network import InitialNetwork, build_network
from proxscore.training.sharding.materialize import materialize
from proxscore.training.sharding.parallelize import parallelize
from proxscore.training.worker import Worker


@dataclass(frozen=True)
class Run:
    """One run in one process, which the functions of the loop and of the evaluation hand on to one another.

    Attributes:
        config: the whole configuration.
        task: gives data, likelihood and metrics.
        worker: where this process stands among those that take part.
        module: the network on the worker's device, sharded where it is shared.
        data: training batches of this worker. Without them an evaluation leaves BatchNorm's statistics as they are.
    """

    config: Config
    task: Task
    worker: Worker
    module: nn.Module
    data: TrainingData | RayTrainingData | None = None

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that forward passes compute in, if it is not that of the weights. FSDP's policy casts a sharded module."""
        return torch.bfloat16 if self.config.training.precision == "bf16" and self.worker.mesh is None else None

    def evaluation_batches(self, split: Any) -> Callable[[], Iterator[Batch]]:
        """Give what begins a pass over this worker's rows of a split: Ray Data's where the cluster streams the data.

        Of fewer than ``LEAST_ROWS`` for each worker, loader processes beside it read them.

        Args:
            split: its name, or a data set of its own, which no cluster streams.
        """
        worker, size = self.worker, self.config.evaluation.batch_size
        streamed = isinstance(split, str) and self.config.task.data.streamed and worker.on_ray
        if streamed and len(getattr(self.task.data, split)) >= LEAST_ROWS * worker.world:
            stream = self.task.streamed_rows(worker.world, self.config.training.cpus_per_worker, split)
            return lambda: streamed_evaluation_batches(stream, size, worker.rank, worker.world)
        rows = getattr(self.task.data, split) if isinstance(split, str) else split
        return lambda: evaluation_batches(rows, size, worker.rank, worker.world)


def prepare(config: Config, task: Task, worker: Worker, built: InitialNetwork | None = None) -> Run:
    """Seed this process, put the network with its initial weights on its device, and open the training batches.

    Args:
        built: the network of this configuration, where the start-up checks have built it.

    Raises:
        ConfigError: ``training.meta_init`` for a network that cannot be initialised shard by shard.
    """
    torch.manual_seed(config.seed)
    module = sharded_module(config, task, worker, built)
    return Run(config, task, worker, module, training_data(config, task, worker, least_rows(module, task)))


def sharded_module(config: Config, task: Task, worker: Worker, built: InitialNetwork | None = None) -> nn.Module:
    """Put the task's network on this process's device, sharded as configured, with its initial weights.

    Raises:
        ConfigError: ``training.meta_init`` for a network that cannot be initialised shard by shard.
    """
    meta = config.training.meta_init
    if meta and config.task.starts_from_weights:
        raise ConfigError("training.meta_init makes initial weights, and task.model reads others: choose one")
    module = None if built is None else built.take(config)
    if module is None:
        module = build_network(config, task)
    if not meta:
        return parallelize(module.to(worker.device), config.training, worker.mesh)
    module = parallelize(module, config.training, worker.mesh)
    materialize(module, worker.device, config.seed)
    return module


def training_data(config: Config, task: Task, worker: Worker, least: int = 1) -> TrainingData | RayTrainingData:
    """Open this worker's training batches: Ray Data's where the cluster streams them, else those of the task's data set.

    Args:
        least: inputs of a micro-batch; see :func:`proxscore.training.data.norm_rows.least_rows`.
    """
    training = config.training
    if config.task.data.streamed and worker.on_ray:
        stream = task.streamed_rows(worker.world, training.cpus_per_worker)
        part = worker.data_rank, worker.data_world
        return RayTrainingData(stream, training.batch_size, *part, config.seed, training.accumulate, least)
    rows = task.training_rows(config.seed)
    return TrainingData(
        rows,
        training.batch_size,
        worker.data_rank,
        worker.data_world,
        config.seed,
        training.accumulate,
        training_loaders(rows, training.loader_processes),
        least,
    )
