"""A network with low-rank adapters as the plain network that it computes: W + (alpha / rank) B A in place of W, A and B."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proxscore.inference.names import named_buffers, named_parameters
from proxscore.posterior import Posterior, Samples
from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.vision.lora import adapters, merged_weight


@torch.no_grad()
def merged(posterior: Posterior, module: nn.Module, draws: int, seed: int) -> Posterior:
    """The posterior of a network with adapters as one of the plain network.

    Args:
        module: the network with adapters; it is as before afterwards. Sharded, every rank calls this.
        draws: so many draws become a set of samples, each with weights of its own; zero: the mean, a point estimate.
        seed: of the draws.

    Returns:
        What predicts with a network that has no adapters: the same, draw by draw, as the posterior with them.
    """
    description = _without_adapters(posterior.description)
    if not draws:
        description.pop(VERDICT, None)
        return _network(posterior, module, None, seed, description)
    indices = posterior.indices(draws)
    return Samples([_network(posterior, module, index, seed, {}) for index in indices], description)


def _network(
    posterior: Posterior, module: nn.Module, index: int | None, seed: int, description: dict[str, Any]
) -> Posterior:
    layers = adapters(module)
    with posterior.use(module, index, seed):
        weights: dict[str, Tensor] = {}
        for name, parameter in named_parameters(module).items():
            path, _, leaf = name.rpartition(".")
            layer = path.removesuffix(".base_layer")
            if layer in layers and path != layer:
                weights[f"{layer}.{leaf}"] = (
                    merged_weight(layers[layer]) if leaf == "weight" else parameter.detach().clone()
                )
            elif not any(path.startswith(f"{other}.") for other in layers):
                weights[name] = parameter.detach().clone()
        buffers = {name: buffer.clone() for name, buffer in named_buffers(module).items() if name in posterior.buffers}
    return Posterior(weights, {}, buffers, description)


def _without_adapters(description: dict[str, Any]) -> dict[str, Any]:
    task = description.get("task") or {}
    model = {key: value for key, value in (task.get("model") or {}).items() if key != "lora"}
    return description | {"task": task | {"model": model}}
