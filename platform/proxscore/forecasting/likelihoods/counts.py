"""Whole numbers from 0 on: negative binomial, and zero-inflated.

    P(y) = Gamma(y + r) / (Gamma(r) y!) (r / (r + m))^r (m / (r + m))^y,    mean m, variance m + m^2 / r

m is the positive part of the location (:mod:`.positive`, w = scale), and the variance is scale^2 where it is above that of
Poisson's distribution: m^2 / r is m times the positive part (w = 1) of scale^2 / m - 1. A scale far below is nearly Poisson.

Location and scale are in counts, whatever power of ten the network counts in within: a count itself is divided by nothing. Zero
inflation: 0 with probability q, else negative binomial, whose mean and variance are such that those of all are the same as above:
m / (1 - q), and scale^2 / (1 - q) - q m^2 / (1 - q)^2.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from proxscore.forecasting.distributions import StepDistribution, parts
from proxscore.forecasting.likelihoods.positive import positive
from proxscore.forecasting.likelihoods.zeros import probability_of_zero

_LEAST = 1e-6  # of a mean, in counts
_LARGEST = 2.0**52  # of a quantile: whole numbers are exact as far as twice that
_NEAR = 4  # counts that scipy's quantile may be off


class NegativeBinomial(StepDistribution):
    """Mean, as the positive part of a location, and standard deviation, if above Poisson's."""

    names: ClassVar[tuple[str, ...]] = ("loc", "scale")
    least = 0.0
    counts = True

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`, the logarithm of the probability; -inf where no count is."""
        _, mean, size = self._inflated(parts(outputs))
        return self._known(_log_probability(mean, size, _inside(values)), outputs, values)

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        zero, mean, size = self._inflated(outputs.detach().unbind(-1))
        return torch.where(values < 0, 0, zero + (1 - zero) * _cdf(mean, size, values))

    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        zero, mean, size = self._inflated(outputs.detach().unbind(-1))
        inner = (torch.as_tensor(probability, dtype=torch.float64) - zero) / (1 - zero)
        return torch.where(inner > 0, _icdf(mean, size, inner.clamp(1e-300, 1 - 1e-16)), 0)

    def mean(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        zero, mean, _ = self._inflated(parts(outputs))
        return ((1 - zero) * mean).to(parts(outputs)[0].dtype)

    def variance(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        zero, mean, size = self._inflated(parts(outputs))
        return ((1 - zero) * (mean + mean.square() / size + zero * mean.square())).to(parts(outputs)[0].dtype)

    @staticmethod
    def _known(found: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        count = (values >= 0) & (values == values.floor())
        return torch.where(count, found, -math.inf).to(torch.promote_types(parts(outputs)[0].dtype, values.dtype))

    def _inflated(self, own: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """q, and mean and r of the negative binomial, float64: of those r, differences of large logarithms are taken."""
        *others, loc, scale = (part.double() for part in own)
        zero = others[0] if others else torch.zeros_like(loc)
        mean = positive(loc, scale).clamp_min(_LEAST) / (1 - zero)
        variance = scale.square() / (1 - zero) - zero * mean.square()
        excess = variance / mean - 1
        return zero, mean, mean / positive(excess, torch.ones_like(excess))


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Probability of a 0 beside the negative binomial's own, then mean and standard deviation of all."""

    names = ("zero", "loc", "scale")

    def shapes(self, raw: list[Tensor]) -> list[Tensor]:
        """See :class:`.StepDistribution`."""
        return probability_of_zero(raw)

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`NegativeBinomial`."""
        zero, mean, size = self._inflated(parts(outputs))
        some = torch.log1p(-zero) + _log_probability(mean, size, _inside(values))
        none = torch.logaddexp(zero.log(), torch.log1p(-zero) - size * torch.log1p(mean / size))
        return self._known(torch.where(values == 0, none, some), outputs, values)


def _inside(values: Tensor) -> Tensor:
    return values.double().clamp_min(0)


def _log_probability(mean: Tensor, size: Tensor, values: Tensor) -> Tensor:
    ways = torch.lgamma(values + size) - torch.lgamma(size) - torch.lgamma(values + 1)
    return ways - size * torch.log1p(mean / size) - values * torch.log1p(size / mean)


def _cdf(mean: Tensor, size: Tensor, values: Tensor) -> Tensor:
    at = values.double().floor().clamp_min(0)
    found = special.betainc(size.numpy(), (at + 1).numpy(), (size / (size + mean)).numpy())
    return torch.from_numpy(np.asarray(found))


def _icdf(mean: Tensor, size: Tensor, probability: Tensor) -> Tensor:
    """The least count at which the distribution function reaches a probability: scipy's, if it is, else by bisection.

    Where it is above 2^52, that number."""
    mean, size, probability = (part.contiguous() for part in torch.broadcast_tensors(mean, size, probability))
    guess = stats.nbinom.ppf(probability.numpy(), size.numpy(), (size / (size + mean)).numpy())
    found = torch.from_numpy(np.nan_to_num(np.asarray(guess, dtype=np.float64), nan=0.0, posinf=0.0)).clamp(0, _LARGEST)
    lower, upper = found - _NEAR, (found + _NEAR).clamp_max(_LARGEST)  # the result is above lower, and at most upper
    for _ in range(60):
        low = _cdf(mean, size, upper) < probability
        if not bool(low.any()):
            break
        lower = torch.where(low, upper, lower)
        upper = torch.where(low, (2 * upper).clamp_max(_LARGEST), upper)
    high = (lower >= 0) & (_cdf(mean, size, lower) >= probability)
    lower, upper = torch.where(high, -1, lower.clamp_min(-1)), torch.where(high, lower, upper)
    while bool((apart := upper - lower > 1).any()):
        middle = ((lower + upper) / 2).floor()
        above = _cdf(mean, size, middle) >= probability
        lower, upper = torch.where(apart & ~above, middle, lower), torch.where(apart & above, middle, upper)
    return upper
