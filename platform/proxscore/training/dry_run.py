"""What a job would do: one real step in this process, and the arithmetic of memory and time."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor, nn

from proxscore.config import Config
from proxscore.inference import noise
from proxscore.methods import Horizon, build_method
from proxscore.training.context import Context, pick_device
from proxscore.training.ingest import TrainingData
from proxscore.training.loop import first_losses, horizon_of, train_step
from proxscore.training.parallelize import parallelize
from proxscore.vision.task import VisionTask


class _Alone(Context):
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def report(self, payload: object, write: object = None) -> None:
        raise RuntimeError("a dry run reports nothing")

    def latest_checkpoint(self) -> None:
        raise RuntimeError("a dry run resumes nothing")


def dry_run(config: Config) -> str:
    """Build task and model, take one warm-up and one timed step of the configured method, and describe the job.

    Memory counts weights, gradients and the optimizer's state, as each worker holds them (fully sharded), in MiB of
    2^20 bytes; activations and data are not in it.
    """
    task = VisionTask(config.task)
    context = _Alone(pick_device(config.training.device))
    torch.manual_seed(config.seed)
    module = parallelize(task.build_model().to(context.device), config.training, None)
    data = TrainingData(task.data.train, config.training.batch_size, 0, 1, config.seed, config.training.accumulate)
    horizon = horizon_of(data.steps_per_epoch, config.training.epochs, task)
    losses = partial(first_losses, module, task, config, context, data)
    method = build_method(config.method, module, horizon, config.seed, losses)
    seconds = 0.0
    for step, (micro_batches, size) in zip(range(2), _repeat(data), strict=False):
        started = time.perf_counter()
        nll = train_step(module, method, task, micro_batches, size, config, context, step)[0]["train/nll"]
        seconds = time.perf_counter() - started
    return _describe(config, task, module, method, horizon, nll, seconds)  # type: ignore[arg-type]


def _repeat(data: TrainingData):  # type: ignore[no-untyped-def]
    epoch = 0
    while True:
        yield from data.epoch(epoch)
        epoch += 1


def _describe(
    config: Config,
    task: VisionTask,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    horizon: Horizon,
    nll: float,
    seconds: float,
) -> str:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    optimizer.state_dict()  # what some families hold is written into the state when it is asked for
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.ndim]
    state = sum(noise.local(tensor).numel() for tensor in tensors)
    workers = max(config.training.workers, 1)
    evaluations = horizon.total_steps * optimizer.evaluations_per_step  # type: ignore[attr-defined]
    minutes = horizon.total_steps * seconds / 60
    lines = [
        f"model            {config.task.model.name}: {parameters:,} parameters, {trained:,} trained",
        f"data             {config.task.data.kind}: {task.data.splits['counts']}, {task.classes} classes",
        f"method           {config.method.kind}: state {(state + trained + parameters) / parameters:.2f} numbers per "
        "parameter (weights and gradients included)",
        f"memory           {4 * (state + trained + parameters) / workers / 2**20:.1f} MiB per worker on {workers} worker(s) "
        "for weights, gradients and state",
        f"work             {horizon.total_steps} steps, {evaluations} gradient evaluations of {config.training.batch_size} rows",
        f"one step here    {seconds:.3f} s, training NLL {nll:.3f}",
        f"estimate         {minutes:.1f} min in one process here; about {minutes / workers:.1f} min on {workers} worker(s) "
        "as quick as this process, evaluation not counted",
    ]
    return "\n".join(lines)
