"""What a job would do: the arithmetic of memory, and the time of one real step where this machine can hold it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch

from proxscore.config import Config, ConfigError, TrainingConfig
from proxscore.methods import RunLength, Setup, build_method
from proxscore.tasks import Task
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.norm_rows import least_rows
from proxscore.training.loop.run_length import run_length
from proxscore.training.loop.step import first_losses, train_step
from proxscore.training.preflight.checks import free_memory
from proxscore.training.preflight.memory import Memory, UncountableError, readable
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.run import Run, sharded_module
from proxscore.training.worker import Worker, pick_device


class _Alone(Worker):
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def report(self, payload: object, write: object = None, *, wait: bool = False) -> None:
        raise RuntimeError("a dry run reports nothing")

    def checkpoints(self) -> Iterator[AbstractContextManager[Path]]:
        raise RuntimeError("a dry run resumes nothing")


def dry_run(config: Config) -> str:
    """Describe the job: parameters, memory per worker, work; and time, from one step of the configured method.

    The memory is counted without allocating any of it. A step is taken, after a warm-up, if this process can hold what
    all workers together would hold.
    """
    task = config.task.build()
    steps_per_epoch = math.ceil(len(task.data.train) / config.training.batch_size)
    length = run_length(steps_per_epoch, config.training.epochs, task)
    preflight = Preflight(config, task)
    try:
        counted = preflight.memory(config.method)
    except UncountableError as reason:
        raise ConfigError(f"--dry-run: {reason}") from reason
    lines = [*_work(config, task, length, counted), *_memory(config, counted)]
    whole = preflight.memory(config.method, _one_worker(config)).total
    free = free_memory(pick_device(config.training.device))
    if whole > free:
        lines.append(f"one step here    not taken: it needs {readable(whole)}, this machine has {readable(free)}")
        return "\n".join(lines)
    nll, seconds = _step(preflight, length)
    minutes, workers = length.total_steps * seconds / 60, max(config.training.workers, 1)
    return "\n".join(
        [
            *lines,
            f"one step here    {seconds:.3f} s, training NLL {nll:.3f}",
            f"estimate         {minutes:.1f} min in one process here; about {minutes / workers:.1f} min on {workers} worker(s) "
            "as quick as this process, evaluation not counted",
        ]
    )


def _one_worker(config: Config) -> TrainingConfig:
    return config.training.model_copy(update={"workers": 1, "draw_groups": 1, "replicate": 1})


def _step(preflight: Preflight, length: RunLength) -> tuple[float, float]:
    """Training NLL and seconds of a step that is not the first."""
    config, task = preflight.config, preflight.task
    worker = _Alone(pick_device(config.training.device))
    torch.manual_seed(config.seed)
    module = sharded_module(config, task, worker, preflight.initial)
    least = least_rows(module, task)
    training = config.training
    data = TrainingData(task.data.train, training.batch_size, 0, 1, config.seed, training.accumulate, least=least)
    run = Run(config, task, worker, module, data)
    method = build_method(config.method, Setup(module, length, config.seed, partial(first_losses, run)))
    nll = seconds = 0.0
    batches = itertools.chain.from_iterable(data.epoch(epoch) for epoch in itertools.count())
    for step, (micro_batches, size) in enumerate(itertools.islice(batches, 2)):
        started = time.perf_counter()
        nll = train_step(run, method, micro_batches, size, step)[0]["train/nll"]
        seconds = time.perf_counter() - started
    return nll, seconds


def _work(config: Config, task: Task, length: RunLength, counted: Memory) -> list[str]:
    evaluations = length.total_steps * config.method.evaluations_per_step()
    return [
        f"model            {config.task.network}: {counted.parameters:,} parameters, {counted.trained:,} trained",
        f"data             {config.task.data.kind}: {task.summary}",
        f"work             {length.total_steps} steps, {evaluations} gradient evaluations of {config.training.batch_size} rows",
    ]


def _memory(config: Config, counted: Memory) -> list[str]:
    """The table of what each worker holds."""
    workers = max(config.training.workers, 1)
    lines = [
        f"method           {config.method.kind}: state {counted.copies:.2f} numbers per parameter (weights and gradients "
        "included)",
        f"memory           {readable(sum(counted.held.values()))} per worker on {workers} worker(s), {counted.shards} to a copy, "
        f"for weights, gradients and state; AdamW: {readable(counted.adamw)}",
    ]
    lines += [f"                 {readable(size):>12}  {name}" for name, size in counted.held.items()]
    if counted.gathered:
        lines.append(
            f"                 {readable(counted.gathered):>12}  blocks gathered for a moment, and gradients of one"
        )
    kept = []
    if pick_device(config.training.device).type == "cpu":
        kept.append("                 (of freed memory glibc keeps some: up to 1.7 times as much was measured on CPUs)")
    when = "when activations are gone" if counted.apart else "from the first draw to the update"
    summed = (
        [f"                 {readable(counted.summed):>12}  gradient of the step, {when}"] if counted.summed else []
    )
    return [
        *lines,
        f"                 {readable(counted.activations):>12}  activations of a micro-batch, about",
        *summed,
        f"                 {readable(counted.total):>12}  all together, at most",
        *kept,
    ]
