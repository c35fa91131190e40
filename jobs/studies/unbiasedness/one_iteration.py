"""Bias and variance of one update under mini-batches, from a fixed Gaussian: ours, IVON's estimator, GSM, BaM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from targets import Moments, N, Regression  # type: ignore[import-not-found]  # beside this file
from torch import Tensor

from proxscore.inference import ForwardKL
from proxscore.inference.elementwise import Settings, curvature, paired_curvature, stepped
from proxscore.inference.step import ProximalStep
from proxscore.methods.references import bam, gsm

EVALUATIONS = 8
WEIGHT = 1000.0  # precision weight of the steps


class Anchor:
    """The fixed Gaussian N(mean, diag(variance)) of the first part."""

    def __init__(self, problem: Regression) -> None:
        signs = 1 - 2 * (torch.arange(problem.dimension, dtype=torch.float64) % 2)
        self.mean = problem.mean + signs * problem.variance.sqrt()
        self.variance, self.deviation, self.signs = 2 * problem.variance, (2 * problem.variance).sqrt(), -signs


def ours(anchor: Anchor, thetas: Tensor, scores: Tensor, paired: bool) -> dict[str, Tensor]:
    """u, k - 1 and log r, (R, D) each, by the package's own closed form; draws and scores (R, S, D).

    The curvature statistics of a step's pairs (or draws) are averaged before the step, as the optimizer does.
    """
    precision = 1 / anchor.variance
    gradients = -(scores + thetas)  # of the negative log-likelihood: the prior's part of the score is -theta
    curvatures = []
    for index in range(0, thetas.shape[1], 2 if paired else 1):
        gradient, theta = gradients[:, index], thetas[:, index]
        if paired:
            gradient, theta = gradients[:, index + 1] - gradient, thetas[:, index + 1]
        statistic = paired_curvature if paired else curvature
        curvatures.append(statistic(gradient, theta - anchor.mean, precision, 1.0, 0.5 if paired else 1.0))
    k = torch.stack(curvatures).mean(0)
    settings = Settings.of(ProximalStep(ForwardKL(), (WEIGHT, 2.0), score_scale=-1.0), 1.0, 0.0)
    mean, score = anchor.mean.expand_as(k), torch.zeros_like(k)
    ratio = stepped(mean, precision, score, None, gradients.mean(1), k, None, ForwardKL(), False, settings)[-1]
    return {"u": -(gradients.mean(1) + anchor.mean) * anchor.deviation, "k": k - 1, "step": ratio.log()}


def ivon_estimator(anchor: Anchor, thetas: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """The same of IVON: Hessian estimate mean(noise g) / sigma^2, and its update with the second-order correction."""
    gradients = -(scores + thetas) / N
    noise = thetas - anchor.mean
    decay, hess = 1.0 / N, (1 / anchor.variance - 1) / N
    estimate = (noise * gradients).mean(1) / anchor.variance
    rate = 1 / WEIGHT
    new = (1 - rate) * hess + rate * estimate + 0.5 * rate**2 * (hess - estimate).square() / (hess + decay)
    score = -N * (gradients.mean(1) + decay * anchor.mean) * anchor.deviation
    return {
        "u": score,
        "k": (estimate + decay) * N * anchor.variance - 1,
        "step": ((new + decay) / (hess + decay)).log(),
    }


def matched(update: Callable[..., Moments]) -> Callable[[Anchor, Tensor, Tensor], dict[str, Tensor]]:
    """Steps of mean (in standard deviations) and log-precision of GSM or BaM, replicate by replicate."""

    def steps(anchor: Anchor, thetas: Tensor, scores: Tensor) -> dict[str, Tensor]:
        results = [update(anchor.mean, anchor.variance.diag(), *pair) for pair in zip(thetas, scores, strict=True)]
        means = torch.stack([mean for mean, _ in results])
        variances = torch.stack([covariance.diagonal() for _, covariance in results])
        return {"u": (means - anchor.mean) / anchor.deviation, "step": -(variances / anchor.variance).log()}

    return steps


def batch_and_match(weight: float) -> Callable[[Anchor, Tensor, Tensor], dict[str, Tensor]]:
    def update(mean: Tensor, covariance: Tensor, draws: Tensor, scores: Tensor) -> Moments:
        solve = bam.low_rank_update if len(draws) < len(mean) else bam.full_update
        return solve(mean, covariance, draws, scores, weight)

    return matched(update)


@dataclass(frozen=True)
class Estimator:
    """One way to make an update of draws (R, S, D) and their scores."""

    update: Callable[[Anchor, Tensor, Tensor], dict[str, Tensor]]
    paired: bool = False
    own_batches: bool = False
    scale: float | None = None  # of the log-precision step; none: its full-batch expectation


def _ours(paired: bool) -> Callable[[Anchor, Tensor, Tensor], dict[str, Tensor]]:
    return lambda anchor, thetas, scores: ours(anchor, thetas, scores, paired)


SMALL = 1 / (2 * WEIGHT)  # BaM's lambda that moves the precision, without noise, as far as ours at WEIGHT
ESTIMATORS = {
    "ours, paired": Estimator(_ours(True), paired=True),
    "ours, unpaired": Estimator(_ours(False)),
    "IVON's": Estimator(ivon_estimator),
    "BaM, λ = 0.0005": Estimator(batch_and_match(SMALL)),
    "BaM, λ = 1": Estimator(batch_and_match(1.0)),
    "BaM, λ = 1, own batches": Estimator(batch_and_match(1.0), own_batches=True),
    "GSM": Estimator(matched(gsm.update), scale=math.log(2)),
}


@dataclass(frozen=True)
class Measured:
    """Relative bias of a statistic, its standard error and spread, and the coordinates' rms z-score (1: no bias)."""

    bias: float
    error: float
    z: float
    spread: float


def measure(problem: Regression, estimator: Estimator, batch: int, replicates: int, seed: int) -> dict[str, Measured]:
    """Bias of every statistic at one batch size, from replicates with mini-batch and full-batch scores of the same draws."""
    anchor, generator = Anchor(problem), torch.Generator().manual_seed(seed)
    pieces: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for first in range(0, replicates, 50):
        count = min(50, replicates - first)
        draws = EVALUATIONS // 2 if estimator.paired else EVALUATIONS
        noise = torch.randn(count, draws, problem.dimension, generator=generator, dtype=torch.float64)
        if estimator.paired:
            noise = torch.stack([noise, -noise], 2).flatten(1, 2)
        thetas = anchor.mean + anchor.deviation * noise
        residuals = problem.residuals(thetas.flatten(0, 1))
        full = (residuals @ problem.x).view_as(thetas) - thetas
        keys = torch.rand(count * (EVALUATIONS if estimator.own_batches else 1), N, generator=generator)
        mask = torch.zeros_like(keys, dtype=torch.float64)
        mask.scatter_(1, keys.topk(batch, 1).indices, N / batch)
        if not estimator.own_batches:
            mask = mask.repeat_interleave(EVALUATIONS, 0)
        mini = ((residuals * mask) @ problem.x).view_as(thetas) - thetas
        pieces.append((estimator.update(anchor, thetas, mini), estimator.update(anchor, thetas, full)))
    results = {}
    for name in pieces[0][0]:
        mini, full = (torch.cat([piece[side][name] for piece in pieces]) for side in (0, 1))
        sign = anchor.signs if name == "u" else torch.ones_like(anchor.signs)
        scale = (full * sign).mean().abs()
        if name == "step" and estimator.scale is not None:
            scale = torch.tensor(estimator.scale)
        difference = mini - full
        along = (difference * sign).mean(1)
        errors = difference.std(0) / math.sqrt(replicates)
        z = 0.0 if batch == N else (difference.mean(0) / errors).square().mean().sqrt().item()
        spread = mini.var(0).mean().sqrt() * math.sqrt(EVALUATIONS) / scale
        bias, error = along.mean() / scale, along.std() / math.sqrt(replicates) / scale
        results[name] = Measured(bias.item(), error.item(), z, spread.item())
    return results
