"""The initial precision, estimated from data: from the squared gradients of a few batches, tensor by tensor.

For a batch of B rows with mean gradient g, B E[g^2] is about the average squared gradient of a single row: the diagonal
of the empirical Fisher information per data point, h. A posterior that starts at N h is as wide as a Laplace
approximation of the untrained network would be; the first draws from it destroy the network, as the network's curvature
grows in training and h leaves out how coordinates act together, so the estimate is multiplied by a safety factor, and
kept within bounds: some tensors have no gradient at first (the residual branches of a network that starts as identity).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from proxscore.inference.buffers import kept_buffers
from proxscore.inference.names import named_parameters

SAFETY = 100.0
LEAST, MOST = 0.1, 10.0


def squared_gradients(module: nn.Module, losses: Iterable[tuple[Tensor, int]]) -> dict[str, float]:
    """h by parameter name: the mean over a tensor's numbers, and over batches, of B g^2.

    Args:
        module: gradients are read from its parameters, and cleared; buffers are as before afterwards.
        losses: (average negative log-likelihood of a batch, with a graph; its number of rows B), one by one. Over FSDP2
            shards, as in training: each rank's part, such that the average of the gradients is the batch's.

    Raises:
        ValueError: no batches, or a gradient that is not finite; names the parameter.
    """
    sums: dict[str, float] = {}
    count = 0
    with kept_buffers(module):
        for loss, rows in losses:
            loss.backward()
            for name, parameter in named_parameters(module).items():
                if parameter.requires_grad:
                    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                    square = gradient.square().mean()
                    value = rows * (square.full_tensor() if isinstance(square, DTensor) else square).item()
                    if not value < float("inf"):
                        raise ValueError(f"initial_precision: the gradient of {name} is not finite at the start")
                    sums[name] = sums.get(name, 0.0) + value
                    parameter.grad = None
            count += 1
    if not count:
        raise ValueError("initial_precision: no batches to estimate it from")
    return {name: value / count for name, value in sums.items()}


def initial_precision(
    squares: Mapping[str, float], safety: float = SAFETY, least: float = LEAST, most: float = MOST
) -> dict[str, float]:
    """Initial precision per data point, by parameter name: min(max(safety * h, least), most)."""
    return {name: min(max(safety * value, least), most) for name, value in squares.items()}
