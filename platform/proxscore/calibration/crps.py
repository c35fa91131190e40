"""The continuous ranked probability score of a forecast distribution F, in the unit of the target y; smaller is better.

    CRPS(F, y) = integral (F(t) - [t >= y])^2 dt = E|X - y| - 1/2 E|X - X'|,    X, X' independent draws from F

Gneiting and Raftery, Strictly proper scoring rules, prediction, and estimation (JASA, 2007). Closed forms: Jordan,
Krueger and Lerch, Evaluating probabilistic forecasts with scoringRules (Journal of Statistical Software, 2019). The CRPS
of a point forecast is the absolute error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special
from torch import Tensor

from proxscore.config import ConfigError


def crps_gaussian(mean: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    """scale (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) with z = (y - mean) / scale; elementwise, scale > 0."""
    z = (targets - mean) / scale
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return scale * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def crps_student_t(df: Tensor, loc: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    """CRPS of loc + scale T, T of Student's t with ``df`` degrees of freedom v; elementwise, scale > 0.

        z (2 F(z) - 1) + 2 f(z) (v + z^2) / (v - 1) - 2 sqrt(v) / (v - 1) B(1/2, v - 1/2) / B(1/2, v/2)^2

    times the scale, with z = (y - loc) / scale, F and f the distribution function and the density of T. Infinite where
    v <= 1: such a distribution has no mean. Computed on the CPU in float64, by scipy (torch has no F); the result is on
    the device and of the dtype of the arguments. No gradients.
    """
    result_like = (df + loc + scale + targets).detach()
    v, location, width, y = (values.detach().double().cpu().numpy() for values in (df, loc, scale, targets))
    z = (y - location) / width
    proper = v > 1
    v = np.where(proper, v, 2.0)  # any number that the formula can take
    log_density = -special.betaln(0.5, v / 2) - 0.5 * np.log(v) - 0.5 * (v + 1) * np.log1p(z * z / v)
    ratio = np.exp(special.betaln(0.5, v - 0.5) - 2 * special.betaln(0.5, v / 2))
    score = (
        z * (2 * special.stdtr(v, z) - 1)
        + 2 * np.exp(log_density) * (v + z * z) / (v - 1)
        - 2 * np.sqrt(v) / (v - 1) * ratio
    )
    return torch.as_tensor(width * np.where(proper, score, np.inf)).to(result_like)


def crps_samples(samples: Tensor, targets: Tensor, *, fair: bool = True) -> Tensor:
    """CRPS estimated from samples x_1, ..., x_S of F: (S, ...) and (...) to (...).

        1/S sum_i |x_i - y| - 1 / (2 S (S - 1)) sum_ij |x_i - x_j|

    The double sum is 2 sum_i (2i - S - 1) x_(i) over the sorted samples, so that S samples cost S log S.

    Args:
        fair: divide by S (S - 1), which makes the expectation over independent samples CRPS(F, y) for every S (Ferro,
            Fair scores for ensemble forecasts, 2014); a single value may be negative. Otherwise by S^2: the CRPS of the
            empirical distribution itself, larger by E|X - X'| / (2 S) in expectation. Several samples per draw of the
            weights are not independent: then the score is fair for that mixture of draws up to O(1 / S), not for the
            mixture over all weights.

    Raises:
        ConfigError: a fair score of fewer than two samples, or shapes that do not fit.
    """
    if samples.ndim < 1 or samples.shape[1:] != targets.shape:
        shapes = f"{tuple(samples.shape)} and {tuple(targets.shape)}"
        raise ConfigError(f"samples and targets have shapes {shapes}; wanted (samples, ...) and (...)")
    if len(samples) < (2 if fair else 1):
        raise ConfigError(f"samples: {len(samples)} are too few; the CRPS needs {2 if fair else 1}")
    return crps_of_sorted(samples.sort(dim=0).values, targets, fair=fair)


def crps_of_sorted(ordered: Tensor, targets: Tensor, *, fair: bool = True) -> Tensor:
    """:func:`crps_samples` of samples (S, ...) that ascend along the first dimension; nothing is checked."""
    # Relative to the target: in float32, a level of 10,000 would leave three digits to a spread of 1.
    residuals = (ordered if ordered.dtype == torch.float64 else ordered.float()) - targets
    count = len(residuals)
    weights = torch.arange(1 - count, count, 2, dtype=residuals.dtype, device=residuals.device)
    weights = weights.div_(count * (count - 1 if fair else count)).view(-1, *[1] * targets.ndim)
    # No matrix product: that would round to TF32 or bfloat16 where training allows it.
    return residuals.abs().mean(dim=0) - (weights * residuals).sum(dim=0)
