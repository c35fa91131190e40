"""What a job would do and take, within seconds whatever the network: memory, time, hours, price, and what looks wrong."""

from __future__ import annotations

import math

import torch

from proxscore.config import Config, ConfigError
from proxscore.methods import RunLength
from proxscore.tasks import Task
from proxscore.training.loop.run_length import run_length
from proxscore.training.preflight.estimate import Estimate, estimate
from proxscore.training.preflight.fabric import described_device, fabric_of, overlaps
from proxscore.training.preflight.hardware import DEVICES
from proxscore.training.preflight.memory import Memory, UncountableError, readable
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.preflight.price import device_hours, duration, price
from proxscore.training.preflight.remarks import remarks
from proxscore.training.sharding import meshes


def dry_run(config: Config) -> str:
    """Describe the job: parameters, memory per worker, work, time, hours, price, and remarks.

    The memory is counted without allocating any of it. The time is extrapolated from a step of a few rows, or, where this
    machine has no room or time for one, from the network's operations; the text says which.

    Raises:
        ConfigError: the job is refused, or its network cannot be counted.
    """
    task = config.task.build()
    steps_per_epoch = math.ceil(len(task.data.train) / config.training.batch_size)
    length = run_length(steps_per_epoch, config.training.epochs, task)
    preflight = Preflight(config, task)
    device = described_device(config)
    lines = [*_work(config, task, length, counted(preflight)), *_memory(config, preflight.memory(config.method))]
    found = estimate(preflight, device)
    lines += estimate_lines(config, found, device)
    lines += total_lines(config, found.seconds, found.workers, device)
    return "\n".join([*lines, *remarks(config, task, length, device)])


def counted(preflight: Preflight) -> Memory:
    """The memory of the method's workers.

    Raises:
        ConfigError: it cannot be counted.
    """
    try:
        return preflight.memory(preflight.config.method)
    except UncountableError as reason:
        raise ConfigError(f"--dry-run: {reason}") from reason


def estimate_lines(config: Config, found: Estimate, device: torch.device) -> list[str]:
    """What the seconds of a step come from, and what they amount to."""
    groups, replicas, shards = meshes.arrangement(config, config.method)
    arranged = f"{groups} draw group(s) x {replicas} replica(s) x {shards} shard(s)"
    lines = [f"workers          {found.workers}: {arranged}, on {device.type}"]
    lines.append(f"one step here    {found.speed.how}")
    if found.workers > 1:
        size, (_, source) = found.traffic, fabric_of(config, device)
        lines.append(
            f"communication    {found.step.sent:.3g} s a step: a worker receives {readable(size.received)} in {size.messages} "
            "messages"
        )
        hidden = f"; {found.step.waited:.3g} s are not hidden behind computing" if overlaps(config, device) else ""
        lines.append(f"                 at {source}{hidden or ', as if nothing were computed meanwhile'}")
    where = f"on {found.workers} worker(s)"
    if config.cost.device is None and config.cost.device_tflops is None:
        where += " as quick as this machine's"
    parts = f"{found.step.computing:.3g} s of computing, {found.step.update:.3g} s of the update"
    lines.append(f"time of a step   {found.step.seconds:.3g} s {where}: {parts}")
    lines.append(
        f"estimate         {duration(found.training)} of training{', with the baseline' if config.baseline else ''}; "
        f"{duration(found.evaluating)} of validation and evaluation; {duration(found.saving)} of waiting for checkpoints"
    )
    lines.append(
        f"                 at cost.storage_gb_s={config.cost.storage_gb_s:g}; reading data and compilation are not counted"
    )
    return lines


def total_lines(
    config: Config, seconds: float, workers: int, device: torch.device, wall: float | None = None
) -> list[str]:
    """Hours and price of so many workers for so long.

    Args:
        wall: seconds until all is done, where there are runs side by side.
    """
    hours, unit = device_hours(config, device.type, workers, seconds)
    return [
        f"total            {duration(seconds if wall is None else wall)}, {hours:.3g} {unit} hours",
        f"price            {price(config, device.type, workers, seconds)}",
    ]


def told_lines(task: Task) -> list[str]:
    """What the data chose, its first word in the column of the others."""
    return [" ".join([f"{line.split()[0]:<16}", *line.split()[1:]]) for line in task.told]


def _work(config: Config, task: Task, length: RunLength, counted: Memory) -> list[str]:
    evaluations = length.total_steps * config.method.evaluations_per_step()
    return [
        f"model            {config.task.network}: {counted.parameters:,} parameters, {counted.trained:,} trained",
        f"data             {config.task.data.kind}: {task.summary}",
        *told_lines(task),
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
    if described_device(config).type == "cpu":
        kept.append("                 (of freed memory glibc keeps some: up to 1.7 times as much was measured on CPUs)")
    summed = []
    if counted.summed:
        when = "from the first draw to the update"
        summed.append(f"                 {readable(counted.summed):>12}  gradient of the step, {when}")
    room = math.inf if config.cost.device is None else DEVICES[config.cost.device].memory
    if counted.total > room:
        kept.append(
            f"                 MORE THAN an {config.cost.device} has, {readable(room)}: use more shards or smaller batches"
        )
    return [
        *lines,
        f"                 {readable(counted.activations):>12}  activations of a micro-batch, about",
        *summed,
        f"                 {readable(counted.total):>12}  all together, at most",
        *kept,
    ]
