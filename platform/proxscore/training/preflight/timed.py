"""The speed of a worker, from a few rows of a real step in this process, where it is quick and large enough for one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
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
from proxscore.training.preflight.hardware import DEVICES
from proxscore.training.preflight.memory import Memory, readable
from proxscore.training.preflight.passes import moved_in_a_step
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.preflight.speed import Speed
from proxscore.training.preflight.traffic import parts_of
from proxscore.training.run import Run, sharded_module
from proxscore.training.sharding import meshes
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
    ``cost.device`` or ``cost.device_tflops`` says what another device computes.

    Args:
        device: of this process.
        rows: of a worker's micro-batch.

    Raises:
        UncountableError: the network's memory cannot be counted.
    """
    config, method = preflight.config, preflight.config.method
    counted = speed.operations(preflight.meta_network, preflight.task, config.training.activation_checkpointing)
    found = _speed(
        preflight, device, rows, sum(counted.values()), preflight.memory(method, _one_worker(config.training))
    )
    return replace(found, shares=speed.shares(counted, parts_of(preflight.meta_network)))


def _speed(preflight: Preflight, device: torch.device, rows: int, flops: float, whole: Memory) -> Speed:
    """The speed, from the operations of a row, and from the memory of a worker alone."""
    config, method, cost = preflight.config, preflight.config.method, preflight.config.cost
    held = sum(whole.held.values())
    moved = moved_bytes(config, whole, device)
    if cost.device is not None:
        hardware = DEVICES[cost.device]
        rate = hardware.peak * cost.utilisation if cost.device_tflops is None else cost.device_tflops * 1e12
        why = f"of cost.device={cost.device} at {rate / 1e12:g} TFLOP/s"
        return speed.by_operations(flops / rate, moved / hardware.bandwidth, why)
    if cost.device_tflops is not None:
        rate, why = cost.device_tflops * 1e12, f"at cost.device_tflops={cost.device_tflops:g}"
        return speed.by_operations(flops / rate, speed.update_seconds(moved, rate, "cuda"), why)
    at_a_row = whole.activations / config.training.batch_size * config.training.accumulate
    free = free_memory(device)
    with _threads_of_a_worker(config.training, device):
        rate = speed.matrix_rate(device)
        row_seconds, update = flops / rate, speed.update_seconds(moved, rate, device.type)
        if (needed := held + whole.summed + LEAST * at_a_row) > free:
            why = f"not taken: it needs {readable(needed)}, this machine has {readable(free)}"
            return speed.by_operations(row_seconds, update, why)
        slowest = LEAST * row_seconds * method.member.evaluations_per_step() + update
        if slowest > speed.SECONDS:
            return speed.by_operations(
                row_seconds, update, f"not taken: {LEAST} rows would take {slowest:.0f} s or more"
            )
        most = min(rows, max(int((free - held - whole.summed) / max(at_a_row, 1)), 1))
        try:
            return _timed(preflight, device, most, row_seconds)
        except FloatingPointError as error:
            return speed.by_operations(row_seconds, update, f"not taken to its end: {error}")


def moved_bytes(config: Config, whole: Memory, device: torch.device) -> float:
    """The bytes that the update of a whole network moves in memory; on a CPU, whose pieces fit the cache, as if compiled."""
    groups, _, _ = meshes.arrangement(config, config.method)
    moved = moved_in_a_step(config.method, groups)
    settings = config.method.member
    uncompiled = getattr(settings, "fused", None) is False or not getattr(settings, "keep_mean", True)
    return whole.trained * (moved.apart if uncompiled and device.type != "cpu" else moved.fused)


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

    if getattr(method, "fused", False):
        timed(least)  # compiles, which may take longer than the timing is given
    return speed.extrapolated(timed, least, max(min(most, len(task.data.train)), least), row_seconds)
