"""Draws of a small network in one batched pass: their weights are stacked, and the network is called once for all of them.

A pass of a small network over a few rows is mostly the cost of calling its layers, S times for S draws. ``torch.func.vmap``
over the stacked weights calls them once. With more arithmetic than ``MOST_WORK`` in a pass, stacked weights gain nothing.

The draws are taken one after another where one pass for all would be another computation, or where vmap has no rule for a
layer: recurrent layers, values that the network looks at, randomness, shards, and buffers that change. The first pass of a
network says so: it is compared with what first and last draw give by themselves.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call, vmap

from proxscore.inference.buffers import kept_buffers
from proxscore.inference.names import named_buffers, named_parameters
from proxscore.posterior.calls import outputs_of, rows_of
from proxscore.posterior.drawn import Drawn

MOST_NUMBERS = 2**25  # of all draws together: 128 MiB of float32
#: Rows times weights of a pass, up to which one for all draws is faster; measured by jobs/studies/speed/prediction.py.
MOST_WORK = 2**20
#: Rounding that may lie between one pass and as many, beside the largest output.
TOLERANCE = 1e-3
TOLERANCE_AUTOCAST = 0.1


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
        self._weights = sum(parameter.numel() for parameter in found.module.parameters())
        self._possible = self._can_stack()
        self._stacks: dict[range, dict[str, Tensor]] = {}  # these three are shared with parts of these draws
        self._reasons: list[str] = []
        self._checked: list[bool] = []

    def __len__(self) -> int:
        return self._count

    def first(self, count: int) -> StackedDraws:
        """The first so many of them."""
        if count >= self._count:
            return self
        part = copy.copy(self)
        part._count = count
        return part

    @property
    def stacked(self) -> bool:
        """Whether batches of few rows go through the network once for all draws."""
        return self._possible and not self._reasons

    @property
    def refused(self) -> str | None:
        """Why the draws are taken one after another, where the network cannot be called with stacked weights."""
        return self._reasons[0] if self._reasons else None

    def _can_stack(self) -> bool:
        """By the sizes alone: no draw is made for it."""
        found, module = self._found, self._found.module
        if len(found) < 2 or not found.copied or len(found) * self._weights > MOST_NUMBERS:
            return False
        if any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
            return False
        # A wrapped network has other names, and shards are gathered by hooks that know nothing of stacked weights.
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        names = {**named_parameters(module), **named_buffers(module)}
        return all(own.get(name) is tensor and not isinstance(tensor, DTensor) for name, tensor in names.items())

    def _stack(self, positions: range) -> dict[str, Tensor] | None:
        """The weights of these draws, (S, ...) by name."""
        for known, stack in self._stacks.items():
            if known.start <= positions.start and positions.stop <= known.stop:
                part = slice(positions.start - known.start, positions.stop - known.start)
                return stack if positions == known else {name: weights[part] for name, weights in stack.items()}
        kept = self._found.kept(positions)
        if kept is None:
            return None
        self._stacks[positions] = {name: torch.stack([draw[name] for draw in kept]) for name in kept[0]}
        return self._stacks[positions]

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Iterator[Tensor]:
        """The network's outputs for a batch that is on its device, under one draw after another."""
        for _, outputs in self.passes([inputs], range(self._count)):
            yield outputs

    @torch.no_grad()
    def passes(self, group: Sequence[Any], positions: range) -> Iterator[tuple[int, Tensor]]:
        """The network's outputs for some batches, with the batch's place among them; of each under one draw after another."""
        large = []
        for place, inputs in enumerate(group):
            together = self.together(inputs, positions)
            if together is None:
                large.append(place)
            else:
                for outputs in together.unbind():
                    yield place, outputs
        if large:
            for place, outputs in self._found.passes([group[place] for place in large], positions):
                yield large[place], outputs

    @torch.no_grad()
    def together(self, inputs: Any, positions: range) -> Tensor | None:
        """(S, rows, ...): the outputs under the draws of these positions, where one pass gives them faster."""
        if not self.stacked or len(positions) < 2 or rows_of(inputs) * self._weights > MOST_WORK:
            return None
        stack = self._stack(positions)
        if stack is None:
            return None
        try:
            return self._call(stack, inputs) if self._checked else self._first_call(stack, inputs, positions)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # a layer that vmap knows no rule for
            self._reasons.append(" ".join(str(error).split())[:200])
            return None

    def _first_call(self, stack: dict[str, Tensor], inputs: Any, positions: range) -> Tensor | None:
        """The same, compared with what the first and the last draw give by themselves."""
        module = self._found.module
        with kept_buffers(module):
            versions = {name: (id(buffer), buffer._version) for name, buffer in named_buffers(module).items()}
            together = self._call(stack, inputs)
            if versions != {name: (id(buffer), buffer._version) for name, buffer in named_buffers(module).items()}:
                self._reasons.append("the network changes its buffers when it is called")
                return None
        bound = TOLERANCE_AUTOCAST if self._found.autocast else TOLERANCE
        for place in (0, len(positions) - 1):
            [(_, alone)] = self._found.passes([inputs], positions[place : place + 1])
            if alone.shape != together[place].shape or not torch.allclose(
                together[place], alone, rtol=bound, atol=bound * float(alone.abs().amax()), equal_nan=True
            ):
                self._reasons.append("one pass for all draws gives other outputs than each draw by itself")
                return None
        self._checked.append(True)
        return together

    def _call(self, stack: dict[str, Tensor], inputs: Any) -> Tensor:
        module = _Outputs(self._found.module)

        def call(weights: dict[str, Tensor]) -> Tensor:
            answer: Tensor = functional_call(module, {f"network.{name}": w for name, w in weights.items()}, (inputs,))
            return answer

        torch.clear_autocast_cache()
        with warnings.catch_warnings(), self._found.casting():
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
            result: Tensor = vmap(call, randomness="error")(stack)
        return result


class _Outputs(nn.Module):
    """A network by what of its answer the likelihood takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Any) -> Tensor:
        return outputs_of(self.network, inputs)
