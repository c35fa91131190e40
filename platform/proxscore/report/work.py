"""Who computes a report: this process alone, or the workers of a Ray Train group."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from proxscore.config import Config
from proxscore.posterior import Posterior
from proxscore.posterior.stored import unpack
from proxscore.report.compute import Report, Results
from proxscore.report.options import Options
from proxscore.report.scored import Place
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.norm_rows import least_rows
from proxscore.training.local.worker import LocalWorker
from proxscore.training.run import Run
from proxscore.training.worker import pick_device
from proxscore.vision.image_task import ImageTask
from proxscore.vision.outside import Outside, load_outside


def alone(
    config: Config,
    task: ImageTask,
    posterior: Posterior,
    options: Options,
    outside: list[Outside],
    show: Callable[[str], None],
) -> Results:
    """Compute a report in this process.

    Raises:
        ConfigError: the network is of another architecture than the posterior, or data are at fault.
    """
    run = _run(config, task, posterior, pick_device(config.training.device))
    return Report(run, posterior, options, outside, Place(), show).compute()


def on_ray(
    config: Config,
    posterior: Posterior,
    options: Options,
    trained: dict[str, Any] | None,
    show: Callable[[str], None],
) -> Results:
    """Compute a report by ``training.workers`` workers, which share the rows.

    Raises:
        ConfigError: the cluster can never place them, or a worker refuses.
        RuntimeError: a worker failed.
    """
    from proxscore.training.ray.connection import connected
    from proxscore.training.ray.parallel import on_workers

    with connected(config, show):
        import ray

        header, tensors = posterior.pack()
        packed = ray.put((header, tensors))
        # In a list: Ray resolves a reference that is an argument itself.
        payload = {"config": config, "posterior": [packed], "options": options, "trained": trained}
        return on_workers(config, _worker, payload)


def _worker(payload: dict[str, Any]) -> Results:
    """The part of one worker; what Ray Train runs on each of them."""
    import ray
    import ray.train.torch
    from ray.train.v2._internal.execution import context as execution_context

    logging.getLogger(execution_context.__file__).setLevel(logging.WARNING)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size())
    config, options = payload["config"], payload["options"]
    task = cast(ImageTask, config.task.build(verify=False, trained=payload["trained"]))
    header, tensors = ray.get(payload["posterior"][0])
    posterior = unpack(Path("posterior"), header, dict(tensors))
    outside = [load_outside(asked, task) for asked in options.outside]
    run = _run(config, task, posterior, ray.train.torch.get_device())
    show = _show if place.rank == 0 else None
    found = Report(run, posterior, options, outside, place, show).compute()
    return found if place.rank == 0 else {}


def _show(line: str) -> None:
    print(line, flush=True)


def _run(config: Config, task: ImageTask, posterior: Posterior, device: torch.device) -> Run:
    """The network with the posterior's mean on a device. Each process reads the same batches for BatchNorm's statistics, so
    that these do not depend on the number of processes."""
    module = posterior.load_into(task.build_model()).to(device)
    rows, least = task.data.train, least_rows(module, task)
    data = TrainingData(rows, config.training.batch_size, rank=0, world=1, seed=config.seed, least=least)
    worker = LocalWorker(Path(), device, lambda payloads: None, keep=1)
    return Run(config, task, worker, module, data)
