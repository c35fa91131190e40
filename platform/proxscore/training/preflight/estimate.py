"""What a job takes: seconds of its steps, of what they send, and of its evaluations; hours of devices, and their price."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from proxscore.config import POINT_METHODS, Config
from proxscore.tasks import Task
from proxscore.training.loop.fit import WRITTEN_BEHIND
from proxscore.training.loop.run_length import run_length
from proxscore.training.preflight.fabric import fabric_of, overlaps
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.preflight.speed import Speed
from proxscore.training.preflight.step_time import (
    FORWARD,
    FORWARD_CHECKPOINTED,
    Communication,
    StepTime,
    step_time,
    waited_forward,
)
from proxscore.training.preflight.timed import speed_of
from proxscore.training.preflight.traffic import Traffic, traffic
from proxscore.training.sharding import meshes


@dataclass(frozen=True)
class Work:
    """How often a job does what takes time.

    Attributes:
        steps: of the method, over all networks that it trains.
        evaluations: gradient evaluations of these steps and beside them.
        baseline: gradient evaluations of the baseline; zero: there is none.
        predicted: rows that are predicted, times draws: validation on the way and evaluation at the end.
        checkpoints: that are written, over all networks.
    """

    steps: int
    evaluations: int
    baseline: int
    predicted: int
    checkpoints: int


@dataclass(frozen=True)
class Estimate:
    """What a job takes.

    Attributes:
        speed: of a worker.
        step: seconds of a step and of its parts.
        training, evaluating: seconds of all steps, and of predictions.
        saving: seconds that steps wait for checkpoints.
        workers: of the job.
        traffic: of a step.
    """

    speed: Speed
    step: StepTime
    training: float
    evaluating: float
    saving: float
    workers: int
    traffic: Traffic

    @property
    def seconds(self) -> float:
        """Of the whole job."""
        return self.training + self.evaluating + self.saving


def work_of(config: Config, task: Task) -> Work:
    """Count what a job does."""
    training, evaluation, method = config.training, config.evaluation, config.method
    per_epoch = math.ceil(len(task.data.train) / training.batch_size)
    networks, epochs = method.member_count(), method.member_epochs(training.epochs)
    length = run_length(per_epoch, epochs, task)
    steps = networks * length.total_steps
    evaluations = steps * method.member.evaluations_per_step() + networks * method.evaluations_beside(per_epoch)
    draws = 1 if method.kind in POINT_METHODS.kinds() else evaluation.validation_draws + 2  # the mean, and one draw
    times = networks * math.floor(epochs / training.validate_every + 1e-9) + 1
    predicted = times * draws * len(task.data.validation)
    final = 1 if method.kind in POINT_METHODS.kinds() else evaluation.draws + 1
    predicted += final * len(task.data.validation)  # thresholds of prediction sets
    predicted += final * len(task.data.test) * (1 + len(evaluation.shifts))
    if evaluation.temperature_scaling:
        predicted += final * len(task.data.validation)
    baseline = 0 if config.baseline is None else length.total_steps * method.evaluations_per_step()
    if baseline:
        predicted += (times + 1) * len(task.data.validation) + len(task.data.test) * (1 + len(evaluation.shifts))
    checkpoints = networks * math.ceil(epochs / training.checkpoint_every - 1e-9)
    return Work(steps, evaluations, baseline, predicted, checkpoints)


def estimate(preflight: Preflight, device: torch.device) -> Estimate:
    """Estimate what the job of the configuration takes, from a few rows of a step of its method.

    Raises:
        ConfigError: the network or the arrangement of workers is refused.
        UncountableError: the network's memory cannot be counted.
    """
    config, method = preflight.config, preflight.config.method
    groups, replicas, shards = meshes.arrangement(config, method)
    training = config.training
    batch = min(training.batch_size, len(preflight.task.data.train))
    rows = math.ceil(batch / (replicas * shards))
    found = speed_of(preflight, device, math.ceil(rows / training.accumulate))
    sent, (fabric, _) = traffic(config, method, preflight.meta_network), fabric_of(config, device)
    overlap, forward = overlaps(config, device), FORWARD_CHECKPOINTED if training.activation_checkpointing else FORWARD
    passes, update = found.passes(rows, training.accumulate), found.update / shards

    def step_of(traffic: Traffic) -> StepTime:
        return step_time(traffic, fabric, passes / training.accumulate, update, found.shares, forward, overlap)

    step, work = step_of(sent), work_of(config, preflight.task)
    beside = (work.evaluations - work.steps * method.member.evaluations_per_step()) * passes
    alone = step_of(replace(sent, passes=1, sums=()))  # the baseline takes as many evaluations in as many steps
    training_seconds = work.steps * step.seconds + beside + work.baseline * alone.seconds
    workers = groups * replicas * shards
    evaluating = found.forward(work.predicted / workers)
    evaluating += _gathering(config, work, sent, Communication.of(sent, fabric), found, overlap)
    behind = training.workers > 0 or WRITTEN_BEHIND.get(device.type, True)
    saving = waited_checkpoints(
        work, preflight.memory(method).checkpoint / (config.cost.storage_gb_s * 1e9), training_seconds, behind
    )
    return Estimate(found, step, training_seconds, evaluating, saving, workers, sent)


def _gathering(
    config: Config, work: Work, traffic: Traffic, times: Communication, speed: Speed, overlap: bool
) -> float:
    """Seconds that predictions wait for blocks, which every batch gathers anew under each draw."""
    rows = config.evaluation.batch_size
    batches = work.predicted / rows
    computing = [speed.forward(rows / traffic.workers) * speed.shares.get(part.name, 0.0) for part in traffic.parts]
    if not overlap:
        return batches * sum(times.gathers)
    return batches * waited_forward(times.gathers, computing, bool(traffic.parts) and not traffic.parts[0].name)


def waited_checkpoints(work: Work, each: float, training: float, behind: bool) -> float:
    """Seconds that steps wait for checkpoints of ``each`` so many seconds, in so many seconds of training.

    The last one always is waited for.

    Args:
        behind: whether training goes on while one is on its way: Ray's workers send it to the storage meanwhile, and an
            accelerator's host writes it. The next one waits for it then.
    """
    if not behind or not work.checkpoints:
        return work.checkpoints * each
    between = training / work.checkpoints
    return (work.checkpoints - 1) * max(0.0, each - between) + each
