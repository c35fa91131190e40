"""Quantiles per step, of any shape: 19 levels from 0.05 to 0.95, trained by the pinball loss.

The median is the location, and the others follow by gaps that are positive, added up, times the scale: quantiles never cross.
The loss of a step, with rho_p(u) = max(p u, (p - 1) u) and s = c scale, is the mean over the levels p of

    rho_p(y - q_p) / s + log s - log p (1 - p),

the negative logarithm of an asymmetric Laplace density about each quantile (Koenker and Machado, 1999). It is not the density of
y, but a generalised likelihood (Bissiri, Holmes and Walker, arXiv 1306.6430), which the true quantiles minimise, and
does not change with the unit but for a constant. c is the mean pinball loss of the standard Gaussian.

The distribution for all else is linear between the quantiles, and has exponential tails that go on with the density beside them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from proxscore.forecasting.distributions import StepDistribution, parts

LEVELS = tuple(round(0.05 * number, 2) for number in range(1, 20))
_MIDDLE = len(LEVELS) // 2
_STEP = 0.05  # of probability
_LEAST = 1e-3  # of a gap, in scales
_GAPS = np.diff(special.ndtri(np.array(LEVELS)))  # of the standard Gaussian, that zeros give
# E rho_p(x - q_p) = f(q_p) of the standard Gaussian, on average over the levels.
_PINBALL = float(np.mean(np.exp(-0.5 * special.ndtri(np.array(LEVELS)) ** 2)) / math.sqrt(2 * math.pi))


class Quantiles(StepDistribution):
    """Gaps between neighbouring quantiles in units of the scale, from the lowest on, then the median and the scale."""

    names = (*(f"gap_{round(100 * level)}" for level in LEVELS[1:]), "loc", "scale")

    def shapes(self, raw: list[Tensor]) -> list[Tensor]:
        """See :class:`.StepDistribution`."""
        starts = np.log(np.expm1(_GAPS - _LEAST))
        return [_LEAST + functional.softplus(part + float(start)) for part, start in zip(raw, starts, strict=True)]

    def quantiles(self, outputs: Tensor) -> Tensor:
        """(..., H, K) to (..., H, 19), at ``LEVELS``."""
        return _quantiles(parts(outputs))

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The pinball loss as said above, summed over the observed steps; arguments as :meth:`.StepDistribution.nll`."""
        self.check_shapes(outputs, targets)
        own, values, observed = parts(outputs), targets[:, 0], targets[:, 1]
        levels = torch.tensor(LEVELS, dtype=own[0].dtype, device=outputs.device)
        missed = torch.where(observed > 0, values, own[-2].detach())[..., None] - _quantiles(own)
        scale = _PINBALL * own[-1][..., None]
        each = torch.maximum(levels * missed, (levels - 1) * missed) / scale + scale.log()
        each = each - torch.log(levels * (1 - levels))
        return torch.where(observed > 0, each.mean(-1), 0).sum(1)

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`. About the median in units of the scale: gaps far below the median are kept."""
        own = tuple(part.double() for part in parts(outputs))
        found, z = _standard(own), (values.double() - own[-2]) / own[-1]
        place = (z[..., None] >= found).sum(-1)
        gap = torch.stack(own[:-2], -1).gather(-1, (place - 1).clamp(0, len(LEVELS) - 2)[..., None])[..., 0]
        outside = (found[..., 0] - z).clamp_min(0) + (z - found[..., -1]).clamp_min(0)
        density = math.log(_STEP) - gap.log() - own[-1].log() - outside / gap
        return density.to(torch.promote_types(parts(outputs)[0].dtype, values.dtype))

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        found, values = _quantiles(outputs.detach().double().unbind(-1)), values.double()
        gaps = found.diff(dim=-1)
        place = (values[..., None] >= found).sum(-1)
        inner = (place - 1).clamp(0, len(LEVELS) - 2)[..., None]
        start, gap = found.gather(-1, inner)[..., 0], gaps.gather(-1, inner)[..., 0]
        within = _STEP * (inner[..., 0] + 1 + (values - start) / gap)
        below = _STEP * torch.exp((values - found[..., 0]).clamp_max(0) / gaps[..., 0])
        above = 1 - _STEP * torch.exp((found[..., -1] - values).clamp_max(0) / gaps[..., -1])
        return torch.where(place == 0, below, torch.where(place == len(LEVELS), above, within))

    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        found = _quantiles(outputs.detach().double().unbind(-1))
        gaps = found.diff(dim=-1)
        wanted = torch.as_tensor(probability, dtype=torch.float64).expand(found.shape[:-1])
        inner = (wanted / _STEP - 1).floor().long().clamp(0, len(LEVELS) - 2)[..., None]
        start, gap = found.gather(-1, inner)[..., 0], gaps.gather(-1, inner)[..., 0]
        within = start + gap * (wanted / _STEP - 1 - inner[..., 0])
        below = found[..., 0] + gaps[..., 0] * torch.log((wanted / _STEP).clamp_max(1))
        above = found[..., -1] - gaps[..., -1] * torch.log(((1 - wanted) / _STEP).clamp_max(1))
        return torch.where(wanted < LEVELS[0], below, torch.where(wanted > LEVELS[-1], above, within))

    def mean(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        own = parts(outputs)
        return own[-2] + own[-1] * _standard_moments(own)[0]

    def variance(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        own = parts(outputs)
        return own[-1].square() * _standard_moments(own)[1]


def _standard(own: tuple[Tensor, ...]) -> Tensor:
    """(..., H, 19), about the median in units of the scale."""
    summed = torch.stack(own[:-2], -1).cumsum(-1)
    summed = torch.cat([torch.zeros_like(summed[..., :1]), summed], -1)
    return summed - summed[..., _MIDDLE : _MIDDLE + 1]


def _quantiles(own: tuple[Tensor, ...]) -> Tensor:
    return own[-2][..., None] + own[-1][..., None] * _standard(own)


def _standard_moments(own: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Mean and variance: of uniform parts, and of the exponential tails, whose mean distance is the gap beside them."""
    found, first, last = _standard(own), own[0], own[-3]
    middles, widths = (found[..., 1:] + found[..., :-1]) / 2, found.diff(dim=-1)
    low, high = found[..., 0] - first, found[..., -1] + last
    mean = _STEP * (middles.sum(-1) + low + high)
    apart = (middles - mean[..., None]).square() + widths.square() / 12
    tails = (low - mean).square() + first.square() + (high - mean).square() + last.square()
    return mean, _STEP * (apart.sum(-1) + tails)
