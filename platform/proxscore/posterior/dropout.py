"""The posterior of Monte Carlo dropout: one set of weights, and a dropout mask for each draw.

A draw multiplies the input of every dropout layer by a mask of zeros and 1 / (1 - rate), the same for all rows: it is one
network with units left out, as a draw of weights is, however the data set is cut into batches. For one row that is the
usual predictive; rows share their draws. Gal and Ghahramani, Dropout as a Bayesian approximation, arXiv 1506.02142.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference import noise
from proxscore.inference.names import named_layers
from proxscore.posterior.posterior import Posterior


def dropout_layers(module: nn.Module) -> dict[str, nn.Dropout]:
    """The dropout layers with a positive rate, by name."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    return {name: layer for name, layer in named_layers(module).items() if isinstance(layer, kinds) and layer.p > 0}  # type: ignore[misc]


@dataclass
class DropoutPosterior(Posterior):
    """Point-estimated weights under random dropout masks."""

    kind = "mc_dropout"

    @property
    def random(self) -> bool:
        return True

    @property
    def varying(self) -> None:
        """Draws are masks, no weights."""

    @property
    def family(self) -> str:
        return self.kind

    def sample(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        raise ConfigError("draws of mc_dropout are masks of units, and no weights: use predict")

    def _variances(self) -> dict[str, Tensor]:
        raise ConfigError("draws of mc_dropout are masks of units, and no weights: they have no standard deviations")

    def _covariance(self, at: Mapping[str, slice]) -> Tensor:
        raise ConfigError("draws of mc_dropout are masks of units, and no weights: they have no covariance")

    @contextmanager
    def use(self, module: nn.Module, index: int | None = None, seed: int = 0) -> Iterator[nn.Module]:
        """Within the context, the weights are in the module, and dropout layers apply mask ``index`` (none: no mask).

        Layers in training mode draw their own masks, as ever.

        Raises:
            ConfigError: the module is of another architecture, or none of its dropout layers is called.
        """
        with super().use(module, None, seed), ExitStack() as stack:
            if index is not None:
                called: list[str] = []
                calls: dict[str, int] = {}  # of each layer, in this forward pass: one that is used twice has two masks
                stack.enter_context(module.register_forward_pre_hook(lambda *_: calls.clear()))
                for name, layer in dropout_layers(module).items():
                    words = (seed, "posterior", index, name)
                    stack.enter_context(layer.register_forward_hook(_mask(words, called, calls)))
            ran = stack.enter_context(_count_evaluations(module))
            yield module
            if index is not None and ran and not called:
                raise ConfigError(
                    "mc_dropout: the network calls none of its dropout layers where masks can reach them (compiled, or "
                    "fused attention): use training.compile=false, and dropout elsewhere than in attention"
                )


@contextmanager
def _count_evaluations(module: nn.Module) -> Iterator[list[bool]]:
    """A list that grows with every forward pass in evaluation mode."""
    ran: list[bool] = []

    def note(layer: nn.Module, *_: Any) -> None:
        if not layer.training:
            ran.append(True)

    with module.register_forward_pre_hook(note):
        yield ran


def _mask(words: tuple[int | str, ...], called: list[str], calls: dict[str, int]) -> Any:
    """A forward hook that gives a dropout layer in evaluation mode one mask for all rows."""
    masks: dict[tuple[int, torch.Size], Tensor] = {}
    layer_name = str(words[-1])

    def hook(layer: Any, inputs: Any, output: Tensor) -> Tensor | None:
        if layer.training:
            return None
        called.append(layer_name)
        use = calls[layer_name] = calls.get(layer_name, -1) + 1
        shape = output.shape[1:]
        if not isinstance(layer, nn.Dropout):  # whole channels
            shape = torch.Size([shape[0], *(1 for _ in shape[1:])])
        if (use, shape) not in masks:
            generator = torch.Generator().manual_seed(noise.key(*words, *([use] if use else [])) >> 1)
            kept = torch.rand(shape, generator=generator) >= layer.p
            masks[use, shape] = (kept / (1 - layer.p) if layer.p < 1 else kept).to(output)
        return output * masks[use, shape].to(output.dtype)

    return hook
