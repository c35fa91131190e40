"""Networks that predict what a window's anchor leaves: those of GluonTS that give each step a distribution, or our own MLP."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.forecasting.anchors import Anchor, Anchored
from proxscore.forecasting.distributions import StepDistribution
from proxscore.forecasting.network import ForecastNetwork
from proxscore.forecasting.windows import Packing

_START = 0.1  # of the last layer's usual initial weights: what it adds to the anchor is small at first


class AnchoredNetwork(ForecastNetwork):
    """A network whose location and scale are in units of an anchor's spread, about its path; see :mod:`.anchors`.

    The network within is given the past as z, in units of the window; what it says of location and scale itself is left out.

    Args:
        anchor: of windows, in the unit of the network.
    """

    def __init__(
        self,
        net: nn.Module,
        packing: Packing,
        likelihood: StepDistribution,
        horizon: int,
        scale_floor: float,
        unit: float,
        anchor: Anchor,
    ) -> None:
        super().__init__(net, packing, likelihood, horizon, scale_floor, unit)
        self.anchor = anchor

    def unlike(self, inputs: Tensor) -> Tensor | None:
        """See :class:`.ForecastNetwork`; by :class:`.distances.Distance`."""
        with torch.no_grad():
            return self.anchor.unlike(self._unpack(inputs))

    def floored(self, inputs: Tensor) -> Tensor:
        """(B,) bool: whether a window (B, F) has the floor for its scale. Weights have no part in it."""
        with torch.no_grad():
            scale = self.anchor(self._unpack(inputs)).scale
        return (scale[:, 0] * self.unit <= self.scale_floor * (1 + 1e-6)) & (self.scale_floor > 0)

    def _within(self, fields: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor]:
        device = fields["past_target"].device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            found: Anchored = self.anchor(fields)
        if isinstance(self.net, ResidualMLP):
            arguments = self.net(found, fields)
        else:
            arguments, _, _ = self.net(**fields | {"past_target": found.z})
        return arguments, found.level + found.scale * found.path, found.scale * found.spread


class ResidualMLP(nn.Module):
    """A multi-layer perceptron on all that is known of a window, for what its anchor leaves.

    Its inputs are asinh of z and of the path, the logarithm of the spread, and, as the data have them, calendar features of the
    first step, covariates (known over the horizon, and past), static numbers, all standardised over the training windows, and an
    embedding of each static category. The hyperbolic sine's inverse is linear near 0 and logarithmic far from it.

    Args:
        context: L.
        horizon: H.
        likelihood: of the steps.
        others: name of each further field -> how many numbers it has.
        categories: numbers of values of the static categories.
        hidden: widths of the hidden layers.
        dropout: between them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        context: int,
        horizon: int,
        likelihood: StepDistribution,
        others: dict[str, int],
        categories: tuple[int, ...],
        hidden: Iterable[int] = (256, 256),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.horizon, self.likelihood, self.others = horizon, likelihood, tuple(others)
        self.embeddings = nn.ModuleList(nn.Embedding(count, min(8, (count + 1) // 2)) for count in categories)
        width = context + 2 * horizon + sum(others.values()) + sum(each.embedding_dim for each in self._embeddings())
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
            width = size
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, horizon * likelihood.size)
        self.register_buffer("mean", torch.zeros(sum(others.values())))
        self.register_buffer("scale", torch.ones(sum(others.values())))
        with torch.no_grad():
            self.head.weight.mul_(_START)
            self.head.bias.zero_()

    def _embeddings(self) -> list[nn.Embedding]:
        return [each for each in self.embeddings if isinstance(each, nn.Embedding)]

    def standardise(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Set mean and scale of the further inputs from training windows."""
        if not self.others:
            return
        values = torch.cat([self._further(fields) for fields in batches]).double()
        self.mean.copy_(values.mean(0))
        deviation = values.std(0, correction=0)
        self.scale.copy_(torch.where(deviation > 1e-9, deviation, 1.0))

    def _further(self, fields: dict[str, Tensor]) -> Tensor:
        return torch.cat([fields[name].flatten(1) for name in self.others], 1)

    def forward(self, anchored: Anchored, fields: dict[str, Tensor]) -> list[Tensor]:
        """Arguments (B, H) of the likelihood, about the anchor's path in units of its spread."""
        parts = [
            torch.asinh(anchored.z),
            torch.asinh(anchored.path),
            anchored.spread.clamp_min(1e-6).log().expand_as(anchored.path),
        ]
        if self.others:
            parts.append((self._further(fields) - self.mean) / self.scale)
        codes = fields.get("feat_static_cat")
        for column, embedding in enumerate(self.embeddings):
            assert codes is not None
            parts.append(embedding(codes[:, column]))
        raw = self.head(self.layers(torch.cat([part.to(self.head.weight.dtype) for part in parts], 1)))
        return self.likelihood.standard(raw.view(len(raw), self.horizon, self.likelihood.size).float())
