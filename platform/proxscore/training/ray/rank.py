"""What a process of Ray Train's group runs.

It is named to that process by this module, which therefore imports nothing that a driver alone needs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from proxscore import garbage

if TYPE_CHECKING:
    from proxscore.config import Config
    from proxscore.tasks import Task
    from proxscore.training.ray.worker import RayWorker


def train_rank(payload: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker, from the first step to the results."""
    garbage.look_less_often()
    from proxscore.training.loop.train import train

    config, task, worker = set_up_worker(payload)
    method = config.baseline if payload["baseline"] else config.method
    assert method is not None
    return train(config, method, payload["epochs"], task, worker)


def set_up_worker(payload: dict[str, Any]) -> tuple[Config, Task, RayWorker]:
    """Make a worker of this process: its configuration, its task, and its place among the others.

    Raises:
        ConfigError: its GPU has too little memory.
    """
    from ray.train.v2._internal.execution import context

    from proxscore.training.preflight import checks
    from proxscore.training.preflight.memory import Memory
    from proxscore.training.ray.worker import RayWorker

    # Ray Train prints every report in full; this logger goes by its file's name, which the configured level does not reach.
    logging.getLogger(context.__file__).setLevel(logging.WARNING)
    config: Config = payload["config"]
    method = config.baseline if payload["baseline"] else config.method
    assert method is not None
    worker, task = RayWorker(config, method), config.task.build(verify=False)
    known = payload["counted"]
    checks.check_gpu(config, method, task, worker.device, Memory(**known) if known else None)
    return config, task, worker
