"""Draws of a small network in one batched pass: their weights are stacked, and the network is called once for all of them.

A pass of a small network over a few rows is mostly the cost of calling its layers, S times for S draws. ``torch.func.vmap``
over the stacked weights calls them once. With many rows the network's own arithmetic counts, and stacked weights gain nothing.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from proxscore.inference.names import named_buffers, named_parameters
from proxscore.posterior.calls import outputs_of, rows_of
from proxscore.posterior.drawn import Drawn

MOST_NUMBERS = 2**25  # of all draws together: 128 MiB of float32
MOST_ROWS = 16  # of a batch, up to which one pass over stacked weights is faster; measured in jobs/studies/serving


class StackedDraws:
    """Draws that are ready in a network, taken in one pass where that is faster, else one after another.

    Args:
        found: the draws; their context stays open as long as this is used.
        count: how many of them are used, the first ones; by default all.
    """

    def __init__(self, found: Drawn, count: int | None = None) -> None:
        self._found = found
        self.device = found.device
        self._count = len(found) if count is None else count
        self._stacked: dict[str, Tensor] | None = self._stack() if len(found) > 1 else None
        self._reasons: list[str] = []  # shared with parts of these draws

    def __len__(self) -> int:
        return self._count

    def first(self, count: int) -> StackedDraws:
        """The first so many of them."""
        if count >= self._count:
            return self
        part = copy.copy(self)
        part._count = count
        if self._stacked is not None:
            part._stacked = {name: weights[:count] for name, weights in self._stacked.items()}
        return part

    @property
    def stacked(self) -> bool:
        """Whether batches of few rows go through the network once for all draws."""
        return self._stacked is not None and not self._reasons

    @property
    def refused(self) -> str | None:
        """Why the draws are taken one after another, where the network cannot be called with stacked weights."""
        return self._reasons[0] if self._reasons else None

    def _stack(self) -> dict[str, Tensor] | None:
        kept = self._found.kept()
        if kept is None or not kept[0]:
            return None
        parameters = {**named_parameters(self._found.module), **named_buffers(self._found.module)}
        own = dict(self._found.module.named_parameters()) | dict(self._found.module.named_buffers())
        if len(kept) * sum(tensor.numel() for tensor in kept[0].values()) > MOST_NUMBERS:
            return None
        if any(own.get(name) is not parameters[name] for name in kept[0]):  # a wrapped network, whose names are others
            return None
        return {name: torch.stack([draw[name] for draw in kept]) for name in kept[0]}

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Iterator[Tensor]:
        """The network's outputs for a batch that is on its device, under one draw after another."""
        if self._stacked is not None and not self._reasons and rows_of(inputs) <= MOST_ROWS:
            try:
                yield from self._together(self._stacked, inputs).unbind()
                return
            except (RuntimeError, ValueError, NotImplementedError) as error:  # a layer that vmap knows no rule for
                self._reasons.append(" ".join(str(error).split())[:200])
        yield from itertools.islice(self._found.outputs(inputs), self._count)

    def _together(self, stacked: dict[str, Tensor], inputs: Any) -> Tensor:
        """(S, rows, ...): the outputs of all draws."""
        module = _Outputs(self._found.module)

        def call(weights: dict[str, Tensor]) -> Tensor:
            answer: Tensor = functional_call(module, {f"network.{name}": w for name, w in weights.items()}, (inputs,))
            return answer

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
            result: Tensor = vmap(call, randomness="error")(stacked)
        return result


class _Outputs(nn.Module):
    """A network by what of its answer the likelihood takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Any) -> Tensor:
        return outputs_of(self.network, inputs)
