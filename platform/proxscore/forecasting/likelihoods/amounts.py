"""Amounts that are often exactly 0 (rain, sales in euros): 0 with a probability of its own, else lognormal.

    P(y = 0) = q,    y | y > 0 lognormal of mean m / (1 - q)

with m the positive part of the location (:mod:`.positive`, w = scale). The variance of y is scale^2, where a lognormal has it:
that of the positive amounts is (1 - q) scale^2 / m^2 - q squares of their mean, and its positive part (w = 1) is taken.

The log-density at 0 is log q. In another unit, tenfold numbers say, densities of positive amounts alone change, by -log 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.forecasting.distributions import StepDistribution, parts
from proxscore.forecasting.likelihoods import lognormal
from proxscore.forecasting.likelihoods.positive import positive
from proxscore.forecasting.likelihoods.zeros import probability_of_zero

_LEAST = 1e-4  # of the mean, in scales


class ZeroInflatedLogNormal(StepDistribution):
    """Probability of 0, then as the lognormal of mean and standard deviation of all, zeros among them."""

    names = ("zero", "loc", "scale")
    least = 0.0
    atom = True

    def shapes(self, raw: list[Tensor]) -> list[Tensor]:
        """See :class:`.StepDistribution`."""
        return probability_of_zero(raw)

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`; -inf below 0."""
        own = parts(outputs)
        zero, mean, relative = _parts(*(part.double() for part in own))
        above = torch.log1p(-zero) + lognormal.log_density(*lognormal.moments(mean, relative), values)
        return torch.where(values == 0, zero.log(), above).to(torch.promote_types(own[0].dtype, values.dtype))

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        zero, mean, relative = _parts(*outputs.detach().double().unbind(-1))
        below = zero + (1 - zero) * lognormal.cdf(*lognormal.moments(mean, relative), values)
        return torch.where(values < 0, 0, below)

    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        zero, mean, relative = _parts(*outputs.detach().double().unbind(-1))
        inner = (torch.as_tensor(probability, dtype=torch.float64) - zero) / (1 - zero)
        loc, scale = lognormal.moments(mean, relative)
        found = torch.exp(loc + scale * torch.special.ndtri(inner.clamp(1e-300, 1 - 1e-16)))
        return torch.where(inner > 0, found, 0)

    def mean(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        zero, mean, _ = _parts(*parts(outputs))
        return (1 - zero) * mean

    def variance(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        zero, mean, relative = _parts(*parts(outputs))
        return (1 - zero) * mean.square() * (relative + zero)


def _parts(zero: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of 0, and mean and relative variance of positive amounts."""
    mean = torch.maximum(positive(loc, scale), _LEAST * scale) / (1 - zero)
    relative = (scale / mean).square() / (1 - zero) - zero
    return zero, mean, positive(relative, torch.ones_like(relative))
