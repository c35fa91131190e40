"""The closed-form proximal step of the mean-field Gaussian, in place over many tensors at once.

:mod:`proxscore.inference.mean_field_step` has the same step in plain form, to read; here no pass makes more temporaries than it
needs. Everything is elementwise over *buckets* of flat local shards, so sharding needs no communication and the temporaries are
of a bucket's size. The statistics are those of the whitened coordinates eps = (theta - m) sqrt(Lambda):

    u = score / sqrt(Lambda)            mean statistic
    k = 1 + e (c g - (Lambda - lambda0) e)   curvature statistic of a pair,   e = theta - m,   g = (g_plus - g_minus)/2
    k = e c g + lambda0 / Lambda             curvature statistic of a single draw

with g the gradient of the mean negative log-likelihood at the draw, c = data size / temperature, and lambda0 the prior
precision, whose part of the score is linear and enters exactly. E k = E_q[-d^2 log p / d theta^2] / Lambda by Stein's
identity. For a pair, the known fluctuation eps^2 - 1 is subtracted: on a quadratic target without coupling, k = 1 at
the optimum whatever the draw. Source: M. Kim, arXiv 2602.05873; antithetic curvature as in shared mini-batch Stein
estimators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from proxscore.inference.bucket import Bucket
from proxscore.inference.step import ProximalStep


def sample_(weights: Tensor, mean: Tensor, precision: Tensor, noise: Tensor) -> None:
    """weights <- mean + noise / sqrt(precision)."""
    torch.addcmul(mean, noise, precision.rsqrt(), out=weights)


def reflect_(bucket: Bucket) -> None:
    """weights <- 2 mean - weights: the other half of an antithetic pair."""
    torch._foreach_lerp_(bucket.weights, bucket.mean, 2.0)


def curvature_(bucket: Bucket, scale: float, paired: bool) -> None:
    """Turn the gradient in ``bucket.statistic`` into the curvature statistic k.

    For a pair the gradient is g_minus - g_plus and the weights are the second draw, so that e = -(theta_plus - m)
    and ``scale`` = c / 2; for a single draw it is g, and ``scale`` = c.
    """
    displacement = [d for d in bucket.displacement if d is not None]
    if not displacement:
        displacement = list(torch._foreach_sub(bucket.weights, bucket.mean))
    if paired:
        torch._foreach_mul_(bucket.statistic, scale)
        excess = torch._foreach_sub(bucket.precision, bucket.prior_precision)
        torch._foreach_addcmul_(bucket.statistic, excess, displacement, value=-1.0)
        torch._foreach_mul_(bucket.statistic, displacement)
        torch._foreach_add_(bucket.statistic, 1.0)
    else:
        prior = torch._foreach_reciprocal(bucket.precision)
        torch._foreach_mul_(prior, bucket.prior_precision)
        torch._foreach_addcmul_(prior, bucket.statistic, displacement, value=scale)
        torch._foreach_copy_(bucket.statistic, prior)


def update_(bucket: Bucket, step: ProximalStep) -> Sequence[Tensor]:
    """The proximal step: moves mean, precision and weights of a bucket, and returns the precision ratios r.

    k       <- 1 + f (k - 1)         of single draws, adaptive metric: f <= 1 holds noise down (``inference.metric``)
    r        = penalty's solution for k, clipped to [exp(-max_log_precision_step), exp(max_log_precision_step)]
    m       <- m + clip(u / (r + 2 kappa_m)) / sqrt(Lambda)      metric of the posterior
    m       <- m + clip(s / (lambda + min(r Lambda - lambda, M) + M))      adaptive metric M, prior precision lambda
    Lambda  <- r Lambda
    """
    squares = [square for square in bucket.square if square is not None]
    if step.metric is not None and step.metric.singles is not None:
        step.metric.hold_down_(bucket.statistic, squares, bucket.squares, bucket.precision, step.weights[0])
    ratio = list(step.penalty.precision_ratio_(bucket.statistic, step.weights[0]))
    if step.max_log_precision_step is not None:
        torch._foreach_clamp_min_(ratio, math.exp(-step.max_log_precision_step))
        torch._foreach_clamp_max_(ratio, math.exp(step.max_log_precision_step))

    torch._foreach_lerp_(bucket.score, bucket.total, 1 - step.momentum)
    offset = [m if m0 is None else m - m0 for m, m0 in zip(bucket.mean, bucket.prior_mean, strict=True)]
    move = torch._foreach_mul(offset, [-precision for precision in bucket.prior_precision])
    torch._foreach_add_(move, bucket.score, alpha=step.score_scale)
    if step.metric is None:
        deviation = torch._foreach_rsqrt(bucket.precision)
        torch._foreach_mul_(move, deviation)
        step.penalty.mean_step_(move, ratio, step.weights[1])
        torch._foreach_clamp_min_(move, -step.max_mean_step)
        torch._foreach_clamp_max_(move, step.max_mean_step)
        torch._foreach_addcmul_(bucket.mean, move, deviation)
        torch._foreach_mul_(bucket.precision, ratio)
    else:
        torch._foreach_mul_(bucket.precision, ratio)
        metric = step.metric.of(squares, bucket.squares)
        likelihood = torch._foreach_sub(bucket.precision, bucket.prior_precision)
        torch._foreach_clamp_min_(likelihood, 0.0)
        torch._foreach_minimum_(likelihood, metric)
        torch._foreach_add_(metric, likelihood)
        torch._foreach_add_(metric, bucket.prior_precision)
        torch._foreach_div_(move, metric)
        torch._foreach_clamp_min_(move, -step.max_mean_step)
        torch._foreach_clamp_max_(move, step.max_mean_step)
        torch._foreach_add_(bucket.mean, move)
        step.metric.add_(squares, bucket.total)
    torch._foreach_copy_(bucket.weights, bucket.mean)
    return ratio
