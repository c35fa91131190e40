"""Averages over the windows: what is known of one tensor's, or block's, convergence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.inference.convergence.windows import CLIPPED_M, CLIPPED_P, COUNT, KK, L0, M0, UU, K, M, U


@dataclass
class Probed:
    """What is known of one tensor's (or block's) probes now, in double precision on the CPU; (n,) each.

    Attributes:
        name: of the tensor, or all of a block's joined by ``, ``.
        numbers: of the shard.
        first: index of the shard's first number in the whole.
        steps: of the window that were seen.
        curvature, curvature_error: average of k in units of the current precision, and its standard error; nan where there is
            none.
        score, score_error: average score, in standard deviations, and its standard error.
        lag: current mean less its average over the window, in standard deviations.
        drift, drift_log_precision: current value less that at the window's start; of the mean in standard deviations.
        clipped, clipped_mean: shares of the steps.
        prior_share: of the precision that is the prior's; zero for a flat one.
        prior_distance: of the mean, in the prior's standard deviations.
        log_precision: now.
        square, square_error: (p, p) average of the statistic's matrix.
        size: numbers that the matrix is of.
        coarse: k says something of all numbers together alone.
        condition: of a full covariance.
    """

    name: str
    numbers: int
    first: int
    steps: float
    curvature: Tensor
    curvature_error: Tensor
    score: Tensor
    score_error: Tensor
    lag: Tensor
    drift: Tensor
    drift_log_precision: Tensor
    clipped: Tensor
    clipped_mean: Tensor
    prior_share: Tensor
    prior_distance: Tensor
    log_precision: Tensor
    square: Tensor | None = None
    square_error: Tensor | None = None
    size: int = 0
    coarse: bool = False
    condition: float = math.nan


@dataclass
class Now:
    """Of the numbers that are watched: mean, log-precision, prior precision and mean, now; (n,) each."""

    mean: Tensor
    log_precision: Tensor
    prior_precision: Tensor
    prior_mean: Tensor


def probed(
    name: str, numbers: int, first: int, sums: Tensor, now: Now, every: int, momentum: float, own_scale: bool = True
) -> Probed:
    """The averages over both windows.

    Args:
        sums: (2, n, columns) of a :class:`Windows`.
        every: of so many steps one was seen.
        momentum: decay of the smoothed score, which correlates its values.
    """
    s = sums.detach().double().cpu()
    mean, log, prior_precision, prior_mean = (
        each.detach().double().cpu() for each in (now.mean, now.log_precision, now.prior_precision, now.prior_mean)
    )
    count = s[..., COUNT]
    seen, total = count > 0, count.sum(0).clamp_min(1)
    to_now = (s[..., L0] - log).exp() if own_scale else torch.ones_like(count)

    def average(column: int, factor: Tensor | float = 1.0) -> Tensor:
        return torch.where(seen, s[..., column] * factor, 0).sum(0) / total

    k, kk = average(K, to_now), average(KK, to_now**2)
    u, uu = average(U), average(UU)
    correlated = (1 + momentum**every) / (1 - momentum**every)
    deviation = (-0.5 * log).exp()
    window_mean = average(M, (-0.5 * s[..., L0]).exp()) + torch.where(seen, s[..., M0] * count, 0).sum(0) / total
    start = torch.where(seen[0], s[0, :, M0], s[1, :, M0])
    start_log = torch.where(seen[0], s[0, :, L0], s[1, :, L0])
    unseen = count.sum(0) == 0
    nan = torch.full_like(k, math.nan)

    def error(square: Tensor, value: Tensor, factor: float = 1.0) -> Tensor:
        spread = ((square - value**2).clamp_min(0) * factor / (total - 1).clamp_min(1)).sqrt()
        return torch.where(total > 1, spread, math.inf)

    return Probed(
        name,
        numbers,
        first,
        count.sum(0).max().item() if len(k) else 0.0,
        torch.where(unseen, nan, k),
        error(kk, k),
        torch.where(unseen, nan, u),
        error(uu, u, correlated),
        torch.where(unseen, nan, (mean - window_mean) / deviation),
        torch.where(unseen, nan, (mean - start) / deviation),
        torch.where(unseen, nan, log - start_log),
        average(CLIPPED_P),
        average(CLIPPED_M),
        prior_precision * (-log).exp(),
        (mean - prior_mean) * prior_precision.sqrt(),
        log,
    )
