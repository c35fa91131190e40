"""Pareto k-hat: how heavy the tail of importance ratios p(theta) / q(theta) is, for theta drawn from q.

Moments of the ratios of order below 1/k are finite. k-hat is the shape of a generalized Pareto distribution

    density(x) = 1/sigma (1 + k x / sigma)^(-1/k - 1),    x > 0

fitted to what the largest ratios exceed a threshold by. Below 0.5 the ratios' variance is finite and q is close to p;
up to 0.7 importance sampling from q still works; above it, q misses a part of p. Sources: Vehtari et al., arXiv
1507.02646; for variational inference, Yao et al., arXiv 1802.02538.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEWEST_DRAWS = 100
_FEWEST_EXCEEDANCES = 5


def pareto_k(log_ratios: Tensor) -> float:
    """k-hat of log importance ratios log p(theta_s) - log q(theta_s), up to a constant.

    The min(S / 5, 3 sqrt(S)) largest of S ratios are the tail. The estimate is drawn towards 1/2 as by 10 observations,
    as arXiv 1507.02646 (appendix C) has it.

    Args:
        log_ratios: (S,), finite.

    Returns:
        k-hat; -inf where the ratios of the tail are all equal (q is p), inf where all but a few of them are 0 next to
        the largest one.

    Raises:
        ValueError: fewer than 100 ratios, or one that is not finite.
    """
    count = len(log_ratios)
    if count < FEWEST_DRAWS:
        raise ValueError(f"Pareto k-hat needs at least {FEWEST_DRAWS} draws; these are {count}")
    if not log_ratios.isfinite().all():
        raise ValueError("Pareto k-hat needs finite log ratios: look for draws whose likelihood is not finite")
    size = math.ceil(min(count / 5, 3 * math.sqrt(count)))
    largest = log_ratios.detach().double().cpu().sort().values[-size - 1 :]
    if largest[0] == largest[-1]:
        return -math.inf
    ratios = (largest - largest[-1]).exp()
    exceedances = ratios[1:] - ratios[0]
    exceedances = exceedances[exceedances > torch.finfo(torch.float64).tiny]
    if len(exceedances) < _FEWEST_EXCEEDANCES:
        return math.inf
    shape, _ = fit_generalized_pareto(exceedances)
    return (len(exceedances) * shape + 10 * 0.5) / (len(exceedances) + 10)


def fit_generalized_pareto(exceedances: Tensor) -> tuple[float, float]:
    """Shape k and scale sigma of a generalized Pareto distribution, by Zhang and Stephens (Technometrics 51, 2009).

    With t = -k / sigma, the likelihood of n observations is largest, for given t, at k(t) = mean log(1 - t x), where

        log L(t) = n (log(-t / k(t)) - k(t) - 1).

    The estimate of t is its mean under L times a weakly informative prior that the data's quartile scales, over a grid
    of that prior's quantiles.

    Args:
        exceedances: (n,), positive.
    """
    x = exceedances.double().sort().values
    count, points = len(x), 30 + int(math.sqrt(len(x)))
    quartile = x[math.floor(count / 4 + 0.5) - 1]
    levels = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    t = 1 / x[-1] + (1 - levels.rsqrt()) / (3 * quartile)
    t = torch.where(t == 0, 1e-12 / x[-1], t)  # the exponential distribution: a limit that 0 / 0 would miss
    shapes = torch.log1p(-t[:, None] * x).mean(1)
    weights = (count * ((-t / shapes).log() - shapes)).softmax(0)
    best = weights @ t
    shape = torch.log1p(-best * x).mean()
    return shape.item(), (-shape / best).item()
