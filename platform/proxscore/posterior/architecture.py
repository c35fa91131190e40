"""Whether a posterior is of a module's architecture, and its mean network in the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference.names import named_buffers, named_layers, named_parameters, persistent_buffers
from proxscore.posterior.checks import check_tensors

if TYPE_CHECKING:
    from proxscore.posterior.posterior import Posterior


def load_into(posterior: Posterior, module: nn.Module) -> nn.Module:
    """See :meth:`proxscore.posterior.Posterior.load_into`."""
    parameters, buffers, layers = named_parameters(module), named_buffers(module), named_layers(module)
    check_parameters(posterior, parameters)
    for name in (*posterior.buffers, *persistent_buffers(module)):
        ours, theirs = posterior.buffers.get(name), buffers.get(name)
        if (
            ours is None
            or theirs is None
            or ours.shape != theirs.shape
            or ours.is_floating_point() != theirs.is_floating_point()
        ):
            shapes = [("no such buffer" if t is None else f"{tuple(t.shape)} {t.dtype}") for t in (ours, theirs)]
            raise ConfigError(
                f"posterior of another architecture: buffer {name} is {shapes[0]} there, {shapes[1]} in the model"
            )
    for name in (*posterior.extra_state, *(name for name, layer in layers.items() if has_extra_state(layer))):
        if name not in posterior.extra_state or name not in layers or not has_extra_state(layers[name]):
            raise ConfigError(f"posterior of another architecture: extra state of layer {name} is on one side only")
    with torch.no_grad():
        for name, value in posterior.mean.items():
            parameters[name].copy_(value)
        for name, value in posterior.buffers.items():
            buffers[name].copy_(value)
    for name, state in posterior.extra_state.items():
        layers[name].set_extra_state(state)
    return module


def check_parameters(posterior: Posterior, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a module's parameters that are not those of the posterior.

    Raises:
        ConfigError: names the first that does not fit.
    """
    for name in (*posterior.mean, *parameters):
        ours, theirs = posterior.mean.get(name), parameters.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            shapes = [("no such parameter" if t is None else str(tuple(t.shape))) for t in (ours, theirs)]
            raise ConfigError(
                f"posterior of another architecture: {name} is {shapes[0]} there, {shapes[1]} in the model"
            )
    check_tensors(posterior, "posterior", finite=False)


def extra_state_of(module: nn.Module) -> dict[str, Any]:
    """What layers with a ``get_extra_state`` give, by their names."""
    return {name: layer.get_extra_state() for name, layer in named_layers(module).items() if has_extra_state(layer)}


def has_extra_state(layer: nn.Module) -> bool:
    """Whether a layer has state beside parameters and buffers."""
    return type(layer).get_extra_state is not nn.Module.get_extra_state
