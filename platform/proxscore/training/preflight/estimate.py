"""What a job takes: seconds of its steps, of what they send, and of its evaluations; hours of devices, and their price."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from proxscore.config import POINT_METHODS, Config
from proxscore.tasks import Task
from proxscore.training.loop.run_length import run_length
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.preflight.speed import Speed
from proxscore.training.preflight.timed import speed_of
from proxscore.training.preflight.traffic import Traffic, link, traffic
from proxscore.training.sharding import meshes


@dataclass(frozen=True)
class Work:
    """How often a job does what takes time.

    Attributes:
        steps: of the method, over all networks that it trains.
        evaluations: gradient evaluations of these steps and beside them.
        baseline: gradient evaluations of the baseline; zero: there is none.
        predicted: rows that are predicted, times draws: validation on the way and evaluation at the end.
    """

    steps: int
    evaluations: int
    baseline: int
    predicted: int


@dataclass(frozen=True)
class Estimate:
    """What a job takes.

    Attributes:
        speed: of a worker.
        step, sent: seconds of a step, and those in it that communication takes.
        training, evaluating: seconds of all steps, and of predictions.
        workers: of the job.
        traffic: of a step.
    """

    speed: Speed
    step: float
    sent: float
    training: float
    evaluating: float
    workers: int
    traffic: Traffic

    @property
    def seconds(self) -> float:
        """Of the whole job."""
        return self.training + self.evaluating


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
    return Work(steps, evaluations, baseline, predicted)


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
    sent = traffic(config, method, preflight.meta_network)
    bandwidth, latency, _ = link(config, device)
    each = method.member.evaluations_per_step()
    passes, update = found.passes(rows, training.accumulate), found.update / shards
    sending = sent.seconds(bandwidth, latency)
    work = work_of(config, preflight.task)
    step = each / groups * passes + update + sending
    beside = (work.evaluations - work.steps * each) * passes
    baseline = work.baseline * (passes + update + sending * groups / each)
    workers = groups * replicas * shards
    training_seconds, evaluating = work.steps * step + beside + baseline, found.forward(work.predicted / workers)
    return Estimate(found, step, sending, training_seconds, evaluating, workers, sent)
