"""What looks wrong about a job that may begin: each remark is a line that says what happens, and what to set."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from proxscore.config import POINT_METHODS, Config
from proxscore.methods import RunLength
from proxscore.tasks import Task
from proxscore.training.sharding import meshes


def remarks(config: Config, task: Task, length: RunLength, device: torch.device) -> list[str]:
    """List what a person would wish to know before the job begins; nothing of it is an error."""
    found = [*_of_length(config, task, length), *_of_workers(config, device), *_of_reports(config)]
    return [f"remark           {text}" for text in found]


def _of_length(config: Config, task: Task, length: RunLength) -> Iterator[str]:
    training, rows = config.training, len(task.data.train)
    if training.batch_size > rows:
        yield (
            f"training.batch_size={training.batch_size} is more than the {rows} training rows: every step takes all of them, "
            "and an epoch is one step"
        )
    warmup = getattr(config.method.member, "warmup", None)
    if warmup and warmup * length.total_steps < 1:
        yield (
            f"the run has {length.total_steps} step(s): a warm-up of {warmup:g} of it is none; use more training.epochs or a "
            "smaller training.batch_size"
        )
    elif length.total_steps < 10:
        yield (
            f"the run has {length.total_steps} step(s): little can be learned; use more training.epochs or a smaller "
            "training.batch_size"
        )


def _of_workers(config: Config, device: torch.device) -> Iterator[str]:
    training = config.training
    _, replicas, shards = meshes.arrangement(config, config.method)
    if training.batch_size < replicas * shards:
        yield (
            f"training.batch_size={training.batch_size} is less than the {replicas * shards} workers that share it: some have "
            "no row, and wait"
        )
    cpus = os.cpu_count() or 1
    if device.type == "cpu" and training.workers * training.cpus_per_worker > cpus:
        yield (
            f"training.workers={training.workers} x training.cpus_per_worker={training.cpus_per_worker:g}: this machine has "
            f"{cpus} CPUs; without further nodes the job waits for them"
        )
    if device.type == "cpu" and training.precision == "bf16":
        yield "training.precision=bf16 on CPUs: few of them compute in it, and on others it is slower than fp32"


def _of_reports(config: Config) -> Iterator[str]:
    training, draws = config.training, config.evaluation.draws
    if training.validate_every > training.epochs:
        chosen = ", and training.early_stopping has one state to choose from" if training.early_stopping else ""
        yield (
            f"training.validate_every={training.validate_every:g} is longer than training.epochs={training.epochs:g}: there is "
            f"no validation on the way{chosen}"
        )
    if training.checkpoint_every > training.epochs:
        yield (
            f"training.checkpoint_every={training.checkpoint_every:g} is longer than training.epochs={training.epochs:g}: what "
            "is interrupted begins anew"
        )
    if draws == 1 and config.method.kind not in POINT_METHODS.kinds():
        yield "evaluation.draws=1: predictions of one draw have no epistemic uncertainty; use 16 or more"
