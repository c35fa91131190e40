"""Whether tensors can be the numbers of a posterior: names, shapes, types, signs, finiteness."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from proxscore.config import ConfigError

if TYPE_CHECKING:
    from proxscore.posterior.posterior import Posterior


def check_tensors(posterior: Posterior, source: str, *, finite: bool = True) -> None:
    """Refuse what cannot be the numbers of a posterior.

    Args:
        source: where they are from: the beginning of a message.
        finite: look at the numbers, and not only at names, shapes and types.

    Raises:
        ConfigError: names the tensor.
    """
    for group, tensors in posterior.groups().items():
        for name, tensor in tensors.items() if group not in ("mean", "buffer", "extra") else ():
            if name not in posterior.mean:
                raise ConfigError(f"{source}: {group}.{name} belongs to no parameter: there is no mean.{name}")
            if tensor.shape != posterior.mean[name].shape:
                raise ConfigError(
                    f"{source}: {group}.{name} is {tuple(tensor.shape)}; its mean is {tuple(posterior.mean[name].shape)}"
                )
            _check_numbers(f"{source}: {group}.{name}", tensor, positive=group == "precision", finite=finite)
    for number, joint in enumerate(posterior.joint):
        for name in joint.names:
            if name not in posterior.mean or name in posterior.precision:
                raise ConfigError(
                    f"{source}: block {number} holds {name}, which has no mean, or a precision of its own"
                )
        for key, tensor in joint.state.items():
            positive = key in ("precision", "precisions", "variance")
            _check_numbers(f"{source}: joint.{number}.{key}", tensor, positive=positive, finite=finite)
    for name, buffer in posterior.buffers.items() if finite else ():
        statistic = name.rpartition(".")[2] in ("running_mean", "running_var")  # others may hold minus infinity: masks
        if statistic:
            _check_numbers(f"{source}: buffer.{name}", buffer, positive=False, finite=True)
        if buffer.is_floating_point() and (
            buffer.isnan().any() or (name.endswith("running_var") and (buffer < 0).any())
        ):
            raise ConfigError(f"{source}: buffer.{name} holds NaN or a negative variance: the file is damaged")
    sampled = {*posterior.precision, *(name for joint in posterior.joint for name in joint.names)}
    for name, mean in posterior.mean.items():
        if name in sampled:
            _check_numbers(f"{source}: mean.{name}", mean, positive=False, finite=finite)
        elif finite and mean.is_floating_point() and _own(mean).isnan().any():
            raise ConfigError(f"{source}: mean.{name} holds NaN: the run has diverged, or the file is damaged")


def _check_numbers(label: str, tensor: Tensor, *, positive: bool, finite: bool) -> None:
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ConfigError(f"{label} is {str(tensor.dtype).removeprefix('torch.')}; it must hold floating-point numbers")
    numbers = _own(tensor)
    if finite and not numbers.isfinite().all():
        raise ConfigError(f"{label} is not finite somewhere: the run has diverged, or the file is damaged")
    if finite and positive and not (numbers > 0).all():
        raise ConfigError(f"{label} is not positive everywhere: no variance has that inverse")


def _own(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
