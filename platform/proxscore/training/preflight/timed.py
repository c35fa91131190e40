"""The speed of a worker, from a few rows of a real step in this process, where it is quick and large enough for one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from proxscore.config import Config, TrainingConfig
from proxscore.methods import Setup, build_method
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.norm_rows import least_rows
from proxscore.training.loop.observer import Observer
from proxscore.training.loop.run_length import run_length
from proxscore.training.loop.step import train_step
from proxscore.training.preflight import speed
from proxscore.training.preflight.checks import free_memory
from proxscore.training.preflight.memory import readable
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.preflight.speed import Speed
from proxscore.training.run import Run, sharded_module
from proxscore.training.worker import Worker

LEAST = 2  # rows of a pass: as many as any network needs


class _Alone(Worker):
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def report(self, payload: object, write: object = None, *, wait: bool = False) -> None:
        raise RuntimeError("a dry run reports nothing")

    def checkpoints(self) -> Iterator[AbstractContextManager[Path]]:
        raise RuntimeError("a dry run resumes nothing")


def speed_of(preflight: Preflight, device: torch.device, rows: int) -> Speed:
    """Find how fast a worker of a job is, within seconds.

    A step of a few rows is timed; where memory or time do not allow one, operations are counted. So they are where
    ``cost.device_tflops`` says what another device computes.

    Args:
        device: of this process.
        rows: of a worker's micro-batch.

    Raises:
        UncountableError: the network's memory cannot be counted.
    """
    config, method = preflight.config, preflight.config.method
    flops = speed.operations(preflight.meta_network, preflight.task, config.training.activation_checkpointing)
    whole = preflight.memory(method, _one_worker(config.training))
    held = sum(whole.held.values())
    at_a_row = whole.activations / config.training.batch_size * config.training.accumulate
    if config.cost.device_tflops is not None:
        rate = config.cost.device_tflops * 1e12
        return speed.by_operations(flops / rate, held / 4, rate, f"at cost.device_tflops={config.cost.device_tflops:g}")
    free = free_memory(device)
    with _threads_of_a_worker(config.training, device):
        rate = speed.matrix_rate(device)
        row_seconds = flops / rate
        if (needed := held + whole.summed + LEAST * at_a_row) > free:
            why = f"not taken: it needs {readable(needed)}, this machine has {readable(free)}"
            return speed.by_operations(row_seconds, held / 4, rate, why)
        slowest = LEAST * row_seconds * method.member.evaluations_per_step() + speed.update_seconds(held / 4, rate)
        if slowest > speed.SECONDS:
            why = f"not taken: {LEAST} rows would take {slowest:.0f} s or more"
            return speed.by_operations(row_seconds, held / 4, rate, why)
        most = min(rows, max(int((free - held - whole.summed) / max(at_a_row, 1)), 1))
        try:
            return _timed(preflight, device, most, row_seconds)
        except FloatingPointError as error:
            return speed.by_operations(row_seconds, held / 4, rate, f"not taken to its end: {error}")


@contextmanager
def _threads_of_a_worker(training: TrainingConfig, device: torch.device) -> Iterator[None]:
    """As many threads as a worker of Ray's has; in one plain process, those that there are."""
    before = torch.get_num_threads()
    if training.workers and device.type == "cpu":
        torch.set_num_threads(max(min(int(training.cpus_per_worker), before), 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_worker(training: TrainingConfig) -> TrainingConfig:
    return training.model_copy(update={"workers": 1, "draw_groups": 1, "replicate": 1, "min_workers": None})


def _uncompiled(config: Config) -> Config:
    """Without compilation, which takes longer than a dry run may."""
    return config.model_copy(update={"training": config.training.model_copy(update={"compile": False})})


def _timed(preflight: Preflight, device: torch.device, most: int, row_seconds: float) -> Speed:
    """Take steps of a few rows with the real network; what the method would measure on data first is left out."""
    config, task = _uncompiled(preflight.config), preflight.task
    worker = _Alone(device)
    torch.manual_seed(config.seed)
    module = sharded_module(config, task, worker, preflight.initial)
    least = min(least_rows(module, task), len(task.data.train))
    run = Run(config, task, worker, module)
    settings = config.method.member.without_measuring()
    length = run_length(math.ceil(len(task.data.train) / config.training.batch_size), config.training.epochs, task)
    method = build_method(settings, Setup(module, length, config.seed))
    module.train()

    def timed(rows: int) -> tuple[float, float]:
        data = TrainingData(task.training_rows(config.seed), rows, 0, 1, config.seed, least=least)
        ((micro_batches, size),) = data.first(1)
        observer = Observer(device)
        train_step(run, method, micro_batches, size, 0, observer=observer)
        seconds = observer.summary()
        return seconds["seconds_forward_backward"] / settings.evaluations_per_step(), seconds["seconds_update"]

    return speed.extrapolated(timed, least, max(min(most, len(task.data.train)), least), row_seconds)
