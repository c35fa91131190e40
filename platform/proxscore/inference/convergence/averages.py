"""Averages over the windows: what the last steps say of the convergence of a tensor or block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.inference.convergence.windows import CLIPPED_M, CLIPPED_P, COUNT, KK, L0, M0, UU, K, M, U


@dataclass
class Probed:
    """What the last steps say of the n watched numbers of a tensor or block, in double precision on the CPU; tensors are (n,).

    Attributes:
        name: the tensor's name, or the names of a block's tensors joined by ``, ``.
        numbers: how many numbers the shard has, watched or not.
        first: index of the shard's first number in the whole tensor.
        steps: how many steps the averages are over.
        curvature, curvature_error: average of k in units of the current precision, and its standard error; nan where there is
            none.
        score, score_error: average score, in standard deviations, and its standard error.
        lag: current mean minus its average over the windows, in standard deviations.
        drift, drift_log_precision: current mean, in standard deviations, and log-precision minus those at the windows' start.
        clipped, clipped_mean: fraction of the steps in which a trust region cut the precision's, or the mean's, step.
        prior_share: fraction of the precision that is the prior's; zero for a flat prior.
        prior_distance: distance of the mean from the prior's, in the prior's standard deviations.
        log_precision: current log-precision.
        square, square_error: (p, p), average of the curvature statistic's matrix, and its standard error.
        size: how many numbers the block has.
        coarse: whether only the average of k over all numbers has to be one.
        condition: condition number of a full covariance.
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
class Current:
    """Mean and precision of the n watched numbers at present, and the prior's; tensors are (n,)."""

    mean: Tensor
    log_precision: Tensor
    prior_precision: Tensor
    prior_mean: Tensor


def averaged(
    name: str, numbers: int, first: int, sums: Tensor, now: Current, every: int, momentum: float, own_scale: bool = True
) -> Probed:
    """Average the sums of both windows, in units of the current posterior.

    Args:
        sums: (2, n, columns) of a :class:`Windows`.
        every: steps between two that were watched, the least in both windows: there values are the most alike.
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
    nan = torch.full_like(k, math.nan)

    def error(square: Tensor, value: Tensor, factor: float = 1.0) -> Tensor:
        spread = ((square - value**2).clamp_min(0) * factor / (total - 1).clamp_min(1)).sqrt()
        return torch.where(total > 1, spread, math.inf)

    def unless_unseen(value: Tensor) -> Tensor:
        return torch.where(count.sum(0) == 0, nan, value)

    return Probed(
        name=name,
        numbers=numbers,
        first=first,
        steps=count.sum(0).max().item() if len(k) else 0.0,
        curvature=unless_unseen(k),
        curvature_error=error(kk, k),
        score=unless_unseen(u),
        score_error=error(uu, u, correlated),
        lag=unless_unseen((mean - window_mean) / deviation),
        drift=unless_unseen((mean - start) / deviation),
        drift_log_precision=unless_unseen(log - start_log),
        clipped=average(CLIPPED_P),
        clipped_mean=average(CLIPPED_M),
        prior_share=prior_precision * (-log).exp(),
        prior_distance=(mean - prior_mean) * prior_precision.sqrt(),
        log_precision=log,
    )
