"""Positive targets whose logarithm is a Gaussian.

The mean is the positive part m of the location (:mod:`.positive`, w = scale), the standard deviation is the scale, so that

    log y ~ N(log m - v / 2, v),    v = log(1 + (scale / m)^2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proxscore.forecasting.distributions import StepDistribution, parts
from proxscore.forecasting.likelihoods.positive import positive

_LEAST = 1e-4  # of the mean, in scales: a scale of ten thousand means is as good as any larger one


class LogNormal(StepDistribution):
    """Lognormal by its mean, the positive part of the location, and its standard deviation, the scale."""

    names = ("loc", "scale")
    least = 0.0
    positive = True

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`; -inf from 0 down."""
        own = parts(outputs)
        found = log_density(*_logarithmic(*(part.double() for part in own)), values)
        return found.to(torch.promote_types(own[0].dtype, values.dtype))

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        return cdf(*_logarithmic(*outputs.detach().double().unbind(-1)), values)

    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        loc, scale = _logarithmic(*outputs.detach().double().unbind(-1))
        return torch.exp(loc + scale * torch.special.ndtri(torch.as_tensor(probability, dtype=torch.float64)))

    def mean(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        return _mean(*parts(outputs))

    def variance(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        return parts(outputs)[1].square()


def _mean(loc: Tensor, scale: Tensor) -> Tensor:
    return torch.maximum(positive(loc, scale), _LEAST * scale)


def _logarithmic(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    mean = _mean(loc, scale)
    return moments(mean, (scale / mean).square())


def moments(mean: Tensor, relative: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of log y, from the mean of y and its variance divided by the mean's square."""
    variance = torch.log1p(relative)
    return mean.log() - variance / 2, variance.sqrt()


def log_density(loc: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """log p(y), by mean and standard deviation of log y; -inf from 0 down."""
    logarithm = torch.where(values > 0, values, 1).log()
    z = (logarithm - loc) / scale
    density = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) - scale.log() - logarithm
    return torch.where(values > 0, density, -math.inf)


def cdf(loc: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """P(y), likewise, float64."""
    values = values.double()
    return torch.where(values > 0, torch.special.ndtr((torch.where(values > 0, values, 1).log() - loc) / scale), 0)
