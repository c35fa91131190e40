"""Runs one trial of an experiment where its configuration says: in this process, or on workers of Ray Train.

A trial of one worker needs no group of them, whose processes take longer to start than many a trial to train: it is this
process, too. What is run is a function of ``(config, task, worker, settings)``, called once in every process that takes
part; the first one's answer is the trial's. Cells of a comparison and trials of a sweep are such functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ray.train import UserCallback

from proxscore.config import Config
from proxscore.tasks import Task
from proxscore.tracking import Recorder
from proxscore.training.local.worker import LocalWorker
from proxscore.training.ray import cluster, trainer
from proxscore.training.ray.rank import set_up_worker
from proxscore.training.worker import Worker, pick_device

Measure = Callable[[Config, Task, Worker, dict[str, Any]], dict[str, Any]]
Sink = Callable[[list[dict[str, Any]]], None]  # of the reports of all ranks; see :class:`Recorder`


def in_one_process(config: Config) -> bool:
    """Say whether a trial is one process: it has one worker at most, a folder for checkpoints, and data that nobody streams.

    Ray Train uploads checkpoints to buckets, and Ray Data feeds its workers.
    """
    training = config.training
    streamed = config.task.data.streamed or "://" in training.storage
    return training.workers == 0 or (training.workers == 1 and not streamed)


def run(
    measure: Measure,
    config: Config,
    name: str,
    recorder: Recorder,
    settings: dict[str, Any],
    *,
    callbacks: Sequence[UserCallback] = (),
) -> dict[str, Any]:
    """Run a trial, resuming the one of this name if there is one.

    Args:
        measure: a function of a module, which workers import.
        config: whole; see :func:`in_one_process`. Checkpoints lie in ``training.storage``, in a folder of the name.
        settings: for ``measure``.
        callbacks: of Ray Train's controller, beside the recorder's.

    Returns:
        What the first process's call returned.
    """
    training = config.training
    if in_one_process(config):
        with local_worker(config, name, recorder) as worker:
            return measure(config, config.task.build(verify=False), worker, settings)
    results, _ = trainer.train_on_ray(
        config,
        config.method,
        training.epochs,
        name,
        recorder,
        worker=_worker,
        settings={"measure": measure, "settings": settings},
        callbacks=callbacks,
    )
    return results


def placed(config: Config) -> Config:
    """The configuration as a cluster has to place it: a process without workers takes as much as one."""
    training = config.training
    return config.model_copy(update={"training": training.model_copy(update={"workers": max(training.workers, 1)})})


def local_worker(
    config: Config, name: str, sink: Sink, kind: type[LocalWorker] = LocalWorker, device: torch.device | None = None
) -> LocalWorker:
    """Make a worker of this process, whose checkpoints lie in ``training.storage``, in a folder of the name."""
    training = config.training
    device = device or pick_device(training.device)
    return kind(Path(training.storage) / name, device, sink, training.keep_checkpoints)


def _worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Call the trial's function on a worker of Ray Train."""
    config, task, worker = set_up_worker(payload)
    if not config.method.shards:
        worker.meshes = None  # the one worker's module stays whole
    found: dict[str, Any] = payload["measure"](config, task, worker, payload["settings"])
    return found


def slots(config: Config, at_most: int | None = None) -> int:
    """Trials that the cluster holds at a time; one more where its autoscaler may add nodes for it."""
    workers, each = placed(config).training.workers, cluster.resources_per_worker(config)
    now = cluster.room(each).total // workers
    later = now + int(cluster.can_ever_place((now + 1) * workers, each))
    return max(1, min(later, at_most or later))
