"""What a worker holds, counted on the meta device: no number of the model is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proxscore.config import Config
from proxscore.methods import Horizon, build_method
from proxscore.training import meshes
from proxscore.training.parallelize import blocks
from proxscore.vision.task import VisionTask

ADAMW = 4  # weights, gradients, two moments


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker holds at rest and in a step; activations and data are not in it.

    Attributes:
        parameters, trained: numbers of the whole model.
        shards: workers that share one copy.
        held: bytes by what they are for: weights, gradients (the score of a draw), and the optimizer's state by name.
        gathered: bytes of the blocks that FSDP2 gathers in a step: the largest one, the next one on its way, and the
            largest one's gradients; none without sharding.
    """

    parameters: int
    trained: int
    shards: int
    held: dict[str, float]
    gathered: float

    @property
    def total(self) -> float:
        """Bytes, all together."""
        return sum(self.held.values()) + self.gathered

    @property
    def copies(self) -> float:
        """Numbers per parameter over all shards, in float32: weights, gradients and state."""
        return sum(self.held.values()) * self.shards / 4 / self.parameters

    @property
    def adamw(self) -> float:
        """Bytes that AdamW would hold in their place."""
        return 4 * (ADAMW * self.trained + self.parameters - self.trained) / self.shards


def memory(config: Config, task: VisionTask, horizon: Horizon) -> Memory:
    """Count what a worker of the configured method holds."""
    module = task.build_model(torch.device("meta"))
    parameters = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    settings = config.method
    if settings.kind == "proximal_score" and settings.initial_precision is None:  # it changes numbers, not their count
        settings = settings.model_copy(update={"initial_precision": 0.1})
    method = build_method(settings, module, horizon, config.seed, lambda: iter(()))
    _, _, shards = meshes.shape(config, config.method)
    held = {"weights": 4.0 * parameters / shards, "gradients": 4.0 * trained / shards}
    for name, size in _state(method, module).items():
        held[name] = 4.0 * size / shards
    sizes = sorted((_numbers(block) for block in blocks(module).values()), reverse=True) or [parameters]
    rest = parameters - sum(sizes)  # the root's own parameters stay gathered from forward to backward
    wide = 2 if config.training.precision == "bf16" else 4
    gathered = 0.0 if shards == 1 else wide * (rest + sum(sizes[:2])) + 4.0 * sizes[0]
    return Memory(parameters, trained, shards, held, gathered)


def _state(method: object, module: nn.Module) -> dict[str, int]:
    """Numbers of an optimizer's state by what they are."""
    assert isinstance(method, torch.optim.Optimizer)
    method.state_dict()  # what some families hold is written into the state when it is asked for
    if not method.state:  # torch's own optimizers make their state in the first step
        return {"moments": 2 * sum(p.numel() for p in module.parameters() if p.requires_grad)}
    found: dict[str, int] = {}
    for state in method.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim:
                found[name] = found.get(name, 0) + value.numel()
    return found


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
