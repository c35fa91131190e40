"""The methods that one training loop serves, by the kind that the configuration names.

A method is a torch optimizer that also has

    draws()               an iterator; its body runs forward and backward, once per gradient evaluation
    evaluations_per_step  how often that is
    nonfinite             0 or 1 on the device: did this rank see a gradient that is not finite?
    found_inf             set before ``step`` to the ranks' common answer
    monitor, statistics   values to record, of the local shards

To add one: a file with a ``build`` function, and a line in ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from proxscore.inference import ProximalScore
from proxscore.methods import adamw, proximal_score
from proxscore.posterior.diagnostics import stuck


class Method(Protocol):
    """An optimizer for a module's posterior or point estimate."""

    evaluations_per_step: int
    found_inf: Tensor | bool | None
    monitor: bool
    statistics: dict[str, float]
    param_groups: list[dict[str, Any]]

    @property
    def nonfinite(self) -> Tensor: ...

    def draws(self) -> Iterator[int]: ...

    def step(self) -> Any: ...


@dataclass(frozen=True)
class Horizon:
    """The length of a run: what schedules refer to."""

    total_steps: int
    steps_per_epoch: int
    data_size: int


METHODS: dict[str, Callable[..., Any]] = {"adamw": adamw.build, "proximal_score": proximal_score.build}


def build_method(
    config: Any,
    module: nn.Module,
    horizon: Horizon,
    seed: int,
    losses: Callable[[], Iterator[tuple[Tensor, int]]],
    draw_mesh: DeviceMesh | None = None,
) -> Method:
    """The method that a configuration section describes, for the parameters of a module.

    Args:
        losses: for a method that looks at data first: average losses of a few training batches, and their rows; see
            :func:`proxscore.inference.curvature.squared_gradients`.
        draw_mesh: for a method that makes draws: the groups of processes that score different ones.
    """
    return METHODS[config.kind](config, module, horizon, seed, losses, draw_mesh)


def advice(method: Method) -> list[str]:
    """What a user should know of the posterior that training left, in lines with advice; see ``posterior.diagnostics``."""
    return stuck(method) if isinstance(method, ProximalScore) else []


def evaluations_per_step(config: Any) -> int:
    """Gradient evaluations that one step of the configured method takes."""
    return config.draws * (2 if config.paired else 1) if config.kind == "proximal_score" else 1
