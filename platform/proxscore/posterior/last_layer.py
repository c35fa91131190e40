"""The linear layer whose outputs are the network's, and its posterior alone: draws of it cost a matrix product each.

The layer is found by what it does: of all linear layers it is the one that returned the tensor that the network returns.
Everything before it has the posterior's mean weights, so that its features are computed once for all draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from proxscore.config import ConfigError
from proxscore.inference import noise
from proxscore.inference.names import named_parameters
from proxscore.posterior.calls import outputs_of
from proxscore.posterior.drawn import SNAPSHOTS, Drawn
from proxscore.posterior.posterior import Posterior
from proxscore.posterior.prediction import GROUP_BATCHES
from proxscore.posterior.stacked import TOLERANCE, TOLERANCE_AUTOCAST
from proxscore.posterior.swag import SWAGPosterior

#: Of all draws together: of their weights, or of their outputs for a batch, that are held at a time.
MOST_NUMBERS = 2**23


class LastLayer:
    """The last layer of a network that has the posterior's mean weights.

    Args:
        found: the mean weights, ready in the network.
    """

    def __init__(self, found: Drawn) -> None:
        self._found = found
        self.layer: nn.Linear | None = None
        self.weight, self.bias = "", ""

    def __call__(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Features (N, D) of the layer, in its precision, and outputs (N, C) of the network.

        Raises:
            ConfigError: the network's outputs are not those of a linear layer, row by row.
        """
        module, seen = self._found.module, list[tuple[nn.Linear, Tensor, Tensor]]()
        linear = (
            [each for each in module.modules() if isinstance(each, nn.Linear)] if self.layer is None else [self.layer]
        )
        hooks = [
            each.register_forward_hook(lambda layer, args, out: seen.append((layer, args[0], out))) for each in linear
        ]
        try:
            with self._found.use(0):
                outputs = outputs_of(module, inputs)
                calls = [layer for layer, _, _ in seen]
                same = [each for each in seen if _is(each[2], outputs) and self._linear(*each)]
        finally:
            for hook in hooks:
                hook.remove()
        if not same or outputs.ndim != 2 or same[-1][1].ndim != 2 or calls.count(same[-1][0]) > 1:
            raise ConfigError(
                "the single pass needs a network whose outputs (rows, outputs) are those of a linear layer, called once; the "
                f"last layer of this one is none (outputs of shape {tuple(outputs.shape)}): predict with draws"
            )
        if self.layer is None:
            self._know(same[-1][0])
        return same[-1][1].detach().to(self.dtype), outputs

    def _linear(self, layer: nn.Linear, phi: Tensor, outputs: Tensor) -> bool:
        """Whether outputs are W phi + b: not where a class of its own, a hook, or an operation in place has changed them."""
        if isinstance(layer.weight, DTensor):
            return True  # it is refused for that
        bound = TOLERANCE_AUTOCAST if self._found.autocast else TOLERANCE
        bias = None if layer.bias is None else layer.bias.to(phi)
        expected = nn.functional.linear(phi, layer.weight.to(phi), bias).to(outputs)
        largest = float(expected.detach().abs().amax()) if expected.numel() else 0.0
        return torch.allclose(outputs, expected, rtol=bound, atol=bound * largest, equal_nan=True)

    @property
    def dtype(self) -> torch.dtype:
        """That of the layer's weights, in single precision at least."""
        assert self.layer is not None
        return torch.promote_types(self.layer.weight.dtype, torch.float32)

    def _know(self, layer: nn.Linear) -> None:
        names = {id(p): name for name, p in named_parameters(self._found.module).items()}
        if isinstance(layer.weight, DTensor) or id(layer.weight) not in names:
            raise ConfigError("the single pass needs a last layer that one process holds: predict with draws")
        self.layer, self.weight = layer, names[id(layer.weight)]
        self.bias = "" if layer.bias is None else names[id(layer.bias)]


def _is(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and (
        one is other
        or (one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride())
    )


def head_posterior(posterior: Posterior, weight: str, bias: str) -> Posterior:
    """The posterior of these parameters, and of those that a family describes together with them: its draws are those of
    the whole.

    Raises:
        ConfigError: a posterior whose draws are of more than that.
    """
    if type(posterior) not in (Posterior, SWAGPosterior):
        raise ConfigError(
            f"a posterior of kind {posterior.kind} has no last layer with features of its own: predict with draws"
        )
    names = {weight, bias} & posterior.mean.keys()
    joint = [each for each in posterior.joint if names & set(each.names)]
    names |= {name for each in joint for name in each.names}
    found = replace(
        posterior,
        mean={n: m for n, m in posterior.mean.items() if n in names},
        precision={n: p for n, p in posterior.precision.items() if n in names},
        joint=joint,
    )
    if isinstance(found, SWAGPosterior):
        columns = [{n: c for n, c in each.items() if n in names} for each in found.deviations]
        found = replace(found, deviations=columns)
    return found


class HeadDraws:
    """Draws of the last layer, under mean weights before it: what :func:`proxscore.posterior.prediction.predicted` takes.

    Args:
        found: the mean weights, ready in the network.
        posterior: of all weights.
        draws: S.
        seed: of the draws: they are the last layer's of the whole posterior's draws.
    """

    def __init__(self, found: Drawn, posterior: Posterior, draws: int, seed: int) -> None:
        self._layer, self._posterior, self._seed, self.device = LastLayer(found), posterior, seed, found.device
        self._count = draws if posterior.random else 1
        self._head: Posterior | None = None
        self._known: list[tuple[Any, Tensor]] = []  # inputs and features of the batches that take turns
        self._kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._stacks: dict[range, tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return self._count

    def passes(self, group: Sequence[Any], positions: range) -> Iterator[tuple[int, Tensor]]:
        """Outputs of some batches, with the batch's place among them, under the draws of these positions."""
        self._known = [(inputs, self._features(inputs)) for inputs in group]
        for position in positions:
            weight, bias = self._draw(position)
            for place, (_, phi) in enumerate(self._known):
                yield place, nn.functional.linear(phi, weight, bias)

    def together(self, inputs: Any, positions: range) -> Tensor | None:
        """(S, N, C): outputs under the draws of these positions by one product, where that is no large one."""
        phi = self._features(inputs)
        self._known = [*(each for each in self._known if each[0] is not inputs), (inputs, phi)][-GROUP_BATCHES:]
        weight, _ = self._draw(positions[0])
        if len(positions) * max(weight.numel(), len(phi) * len(weight)) > MOST_NUMBERS:
            return None
        if positions not in self._stacks:
            draws = [self._draw(position) for position in positions]
            biases = [bias for _, bias in draws if bias is not None]
            self._stacks[positions] = torch.cat([each for each, _ in draws]), torch.cat(biases) if biases else None
        return nn.functional.linear(phi, *self._stacks[positions]).unflatten(1, (len(positions), -1)).transpose(0, 1)

    def _features(self, inputs: Any) -> Tensor:
        known = next((phi for held, phi in self._known if held is inputs), None)
        return self._layer(inputs)[0] if known is None else known

    def _draw(self, position: int) -> tuple[Tensor, Tensor | None]:
        if position in self._kept:
            return self._kept[position]
        layer = self._layer
        assert layer.layer is not None
        if self._head is None:
            self._head = head_posterior(self._posterior, layer.weight, layer.bias)
        like = layer.layer.weight
        targets = {n: torch.empty_like(m, device=like.device, dtype=like.dtype) for n, m in self._head.mean.items()}
        if self._head.random:
            self._head.put(targets, position, self._seed)
        else:
            for name, target in targets.items():
                noise.local(target).copy_(noise.local(self._head.mean[name]))
        weight, bias = targets[layer.weight].to(layer.dtype), targets.get(layer.bias)
        made = weight, None if bias is None else bias.to(layer.dtype)
        if self._count * weight.nbytes <= SNAPSHOTS:
            self._kept[position] = made
        return made
