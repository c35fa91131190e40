"""What a worker holds, counted on the meta device: no number of the model is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from proxscore.config import Config, ConfigError, MethodError, MethodSection
from proxscore.inference import ProximalScore
from proxscore.inference.convergence import KEY
from proxscore.methods import RunLength, Setup, build_method
from proxscore.tasks import Task
from proxscore.training.data.norm_rows import check_rows
from proxscore.training.preflight.traffic import parts_of
from proxscore.training.sharding import meshes
from proxscore.training.sharding.parallelize import blocks, parallelize, put_blocks

ADAMW = 4  # weights, gradients, two moments


@dataclass(frozen=True)
class Memory:
    """The memory that one worker needs (bytes), at rest and in a step; data are not counted.

    Attributes:
        parameters, trained: numbers of the whole model.
        shards: workers that share one copy.
        held: bytes by what they are for: weights, gradients (the score of a draw), and the optimizer's state by name.
        gathered: bytes of the blocks that FSDP2 gathers in a step: the largest one, the next one on its way, and the
            largest one's gradients; none without sharding.
        activations: bytes that the forward pass of a micro-batch leaves for the backward pass, as if nothing were
            compiled; in bfloat16 about half of those in float32. Gates that recurrent layers keep within are not seen: up to
            four times as much.
        summed: bytes of the mean of a step's gradients over its draws, from the first draw to the update: the seventh number,
            which a single draw beside a separate mean does not need.
    """

    parameters: int
    trained: int
    shards: int
    held: dict[str, float]
    gathered: float
    activations: float
    summed: float = 0.0

    @property
    def total(self) -> float:
        """The most bytes at once."""
        return sum(self.held.values()) + self.gathered + self.activations + self.summed

    @property
    def checkpoint(self) -> float:
        """The bytes of a checkpoint of all shards: weights, state, and posterior."""
        state = sum(size for name, size in self.held.items() if name != "gradients")
        return state * self.shards + 2 * 4.0 * self.parameters

    @property
    def copies(self) -> float:
        """The numbers that are held for each parameter, over all shards, in float32: weights, gradients and state."""
        return sum(self.held.values()) * self.shards / 4 / self.parameters

    @property
    def adamw(self) -> float:
        """The bytes that AdamW would hold in their place."""
        return 4 * (ADAMW * self.trained + self.parameters - self.trained) / self.shards


class UncountableError(Exception):
    """A network can be built, but not on the meta device, so that its memory cannot be counted."""


def count_memory(
    config: Config, settings: MethodSection, task: Task, meta_network: Callable[[], nn.Module] | None = None
) -> Memory:
    """Count what a worker of a method holds.

    Args:
        meta_network: gives the task's network on the meta device, where it is there already; counting leaves it as it was.

    Raises:
        ConfigError: the network, the method's settings for a run of this length, or the arrangement of workers, is refused.
        UncountableError: the network needs numbers to be built or to be run forward; says what stands in the way.
    """
    try:
        return _memory(config, settings, task, meta_network or partial(task.build_model, torch.device("meta")))
    except MethodError:
        raise
    except (ConfigError, NotImplementedError, RuntimeError) as error:
        meshes.arrangement(config, settings)
        task.build_model()  # what is wrong with the network itself is said here
        reason = " ".join(str(error).split())[:200]
        raise UncountableError(f"{config.task.network} cannot be counted without its numbers ({reason})") from error


def _memory(config: Config, settings: MethodSection, task: Task, meta_network: Callable[[], nn.Module]) -> Memory:
    members, epochs = settings.member_count(), settings.member_epochs(config.training.epochs)
    settings = settings.member
    module = meta_network()
    parameters = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    settings = settings.without_measuring()
    steps = math.ceil(len(task.data.train) / config.training.batch_size)
    run = RunLength(max(round(epochs * steps), 1), steps, len(task.data.train))
    method = build_method(settings, Setup(module, run, config.seed))
    _, replicas, shards = meshes.arrangement(config, settings)
    held = held_bytes(method, module, shards)
    if members > 1:  # at least: their weights
        held["members"] = 4.0 * parameters * (members - 1)
    wide = 2 if config.training.precision == "bf16" else 4
    gathered = gathered_bytes(module, shards, wide)
    check_rows(config, [settings], module, task)
    rows = math.ceil(config.training.batch_size / (replicas * shards) / config.training.accumulate)
    summed = 0.0
    if isinstance(method, ProximalScore) and not (settings.evaluations_per_step() == 1 and settings.keep_mean):
        summed = 4.0 * sum(parameter.numel() for _, parameter, _ in method.sampled()) / shards
    activations = _activations(config, module, task, rows) * wide / 4
    return Memory(parameters, trained, shards, held, gathered, activations, summed)


def held_bytes(method: object, module: nn.Module, shards: int) -> dict[str, float]:
    """The bytes that a worker holds all the time of weights, gradients and an optimizer's state, by what they are."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    held = {"weights": 4.0 * _numbers(module) / shards, "gradients": 4.0 * trained / shards}
    return held | {name: 4.0 * size / shards for name, size in _state(method, module).items()}


def gathered_bytes(module: nn.Module, shards: int, wide: int) -> float:
    """The bytes that FSDP2 gathers at once, padded: the root, two blocks, and the gradients of the largest one."""
    if shards == 1:
        return 0.0
    parts = parts_of(module, shards)
    root = sum(part.numbers for part in parts if not part.name)  # stays gathered from forward to backward
    sizes = sorted((part.numbers for part in parts if part.name), reverse=True) or [root]
    return wide * (root + sum(sizes[:2])) + 4.0 * sizes[0]


def _activations(config: Config, module: nn.Module, task: Task, rows: int) -> float:
    """Count the bytes that autograd saves in a forward pass of so many rows."""
    own = blocks(module)
    parallelize(module, config.training.model_copy(update={"compile": False}), None)
    try:
        inputs, targets = task.example(rows, torch.device("meta"))
        return saved_bytes(module, lambda: task.likelihood.nll(module.train()(inputs), targets).sum())
    finally:
        put_blocks(module, own)


def saved_bytes(module: nn.Module, forward: Callable[[], Tensor]) -> float:
    """Count the bytes that autograd saves in a forward pass of a module, each storage once, without parameters."""
    storages = {p.untyped_storage()._cdata for p in module.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            saved[storage._cdata] = max(saved.get(storage._cdata, 0), tensor.numel() * tensor.element_size())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()
    del loss  # it kept the graph alive, and with it the storages' addresses
    return float(sum(saved.values()))


def _state(method: object, module: nn.Module) -> dict[str, int]:
    """Count the numbers of an optimizer's state by what they are."""
    assert isinstance(method, torch.optim.Optimizer)
    held = method.state_dict()["state"]
    if isinstance(method, torch.optim.AdamW):  # makes its state in the first step
        return {"moments": 2 * sum(p.numel() for p in module.parameters() if p.requires_grad)}
    found: dict[str, int] = {}
    for state in held.values():
        for name, value in state.items():
            if (
                isinstance(value, Tensor) and value.ndim and name != KEY
            ):  # of a size that does not grow with the tensor's
                found[name] = found.get(name, 0) + value.numel()
    return found


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def readable(size: float) -> str:
    """Write a number of bytes in MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
