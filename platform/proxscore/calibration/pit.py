"""Probability integral transforms: where a target lies within its predictive distribution, and whether evenly so.

For samples x_1, ..., x_S and target y, with a fresh u from the uniform distribution on [0, 1),

    PIT = (#{x_i < y} + u (1 + #{x_i = y})) / (S + 1)

is uniform on [0, 1) when y comes from the distribution of the samples, for every S and also with ties (counts, zeros):
the rank of y among the S + 1 values is uniform, ties in random order, and u spreads it over its cell (Dawid, 1984; for the
randomisation Smith, 1985; Czado, Gneiting and Held, Predictive model assessment for count data, 2009). A histogram that is
high at both ends says that the predictive is too narrow, one that is high in the middle, too wide.

The tests assume independent values. The steps of one window are not independent, nor are windows that overlap: a small
p-value is no proof there. Read it beside the histogram, and compare methods on the same windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.config import ConfigError


@dataclass(frozen=True)
class Uniformity:
    """Two tests that PIT values are uniform; small p-values speak against it, if the values are independent.

    Attributes:
        chi_square, chi_square_pvalue: Pearson's test on counts in bins of equal width; its p-value is an approximation,
            good from about 5 values per bin.
        ks, ks_pvalue: Kolmogorov and Smirnov's largest distance between distribution functions.
    """

    chi_square: float
    chi_square_pvalue: float
    ks: float
    ks_pvalue: float


def pit_values(samples: Tensor, targets: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """(...) PIT of targets (...) under samples (S, ...), in [0, 1]; NaN where the target or a sample is NaN.

    Args:
        generator: on the CPU; draws u, so that values do not depend on the device.

    Raises:
        ConfigError: shapes that do not fit, or no samples.
    """
    if samples.ndim < 1 or samples.shape[1:] != targets.shape or not len(samples):
        shapes = f"{tuple(samples.shape)} and {tuple(targets.shape)}"
        raise ConfigError(f"samples and targets have shapes {shapes}; wanted (samples, ...) and (...)")
    below = (samples < targets).sum(dim=0)
    equal = (samples == targets).sum(dim=0)
    uniform = torch.rand(targets.shape, dtype=torch.float64, generator=generator).to(targets.device)
    values = (below + uniform * (1 + equal)) / (len(samples) + 1)
    return values.masked_fill(targets.isnan() | samples.isnan().any(dim=0), torch.nan)


def pit_counts(values: Tensor, *, bins: int = 10) -> Tensor:
    """(bins,) long, PIT values per bin of equal width; NaN is left out.

    Raises:
        ConfigError: fewer than 2 bins, or a value outside [0, 1].
    """
    if bins < 2:
        raise ConfigError(f"bins is {bins}; a PIT histogram needs at least 2")
    values = values[~values.isnan()].double()
    if ((values < 0) | (values > 1)).any():
        raise ConfigError(f"PIT values reach from {float(values.min()):g} to {float(values.max()):g}; wanted [0, 1]")
    # Exactly 1 belongs to the last bin.
    return torch.bincount((values * bins).long().clamp(max=bins - 1), minlength=bins)


def chi_square(counts: Tensor) -> tuple[float, float]:
    """Statistic and p-value of Pearson's test that all bins are equally likely, of counts (bins,).

    Raises:
        ConfigError: all bins are empty.
    """
    if not counts.sum():
        raise ConfigError("no PIT values; a test of uniformity needs at least one observed step")
    from scipy import stats  # here: it takes seconds

    result = stats.chisquare(counts.double().cpu().numpy())
    return float(result.statistic), float(result.pvalue)


def uniformity(values: Tensor, *, bins: int = 10) -> Uniformity:
    """Both tests on PIT values of any shape; NaN is left out. Errors as :func:`pit_counts` and :func:`chi_square`."""
    from scipy import stats

    statistic, pvalue = chi_square(pit_counts(values, bins=bins))
    ks = stats.kstest(values[~values.isnan()].double().cpu().numpy(), "uniform")
    return Uniformity(statistic, pvalue, float(ks.statistic), float(ks.pvalue))
