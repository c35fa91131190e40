"""What the reference algorithms share: the Gaussian, its draws and their scores, the checks, and the loop of GSM and BaM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Score = Callable[[Tensor, torch.Generator], Tensor]
"""Draws (S, D) to scores (S, D), the gradients of the log joint density; the generator is for its own mini-batches."""

Trace = Callable[[int, int, Tensor, Tensor], None]
"""Receives (steps done, score evaluations done, mean, covariance): once at the start, and after every step."""

Rate = float | Callable[[int], float]
"""A learning rate: constant, or a function of the step, which counts from 0."""

Update = Callable[[int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(step, mean, covariance, draws, scores) of the anchor to the next (mean, covariance)."""


@dataclass(frozen=True)
class GaussianApproximation:
    """q(theta) = N(mean, covariance): (D,) and (D, D), float64."""

    mean: Tensor
    covariance: Tensor


def prepare(mean: Tensor, covariance: Tensor, steps: int, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """The start: float64 copies of mean and covariance, and the covariance's Cholesky factor.

    Raises:
        ValueError: names the setting and what would be right.
    """
    for name, value in (("steps", steps), ("draws", draws)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value}; it must be a whole number of at least 1")
    if mean.ndim != 1 or len(mean) == 0:
        raise ValueError(f"mean has shape {tuple(mean.shape)}; it must be a vector of at least one number")
    if covariance.shape != (len(mean), len(mean)):
        right = (len(mean), len(mean))
        raise ValueError(f"covariance has shape {tuple(covariance.shape)}; for this mean it must be {right}")
    mean = mean.detach().to(torch.float64, copy=True)
    covariance = covariance.detach().to(mean, copy=True)
    if not mean.isfinite().all():
        raise ValueError("mean has entries that are not finite; it must be a vector of finite numbers")
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not covariance.isfinite().all() or not torch.allclose(covariance, covariance.mT) or failed:
        raise ValueError("covariance is not symmetric and positive definite, as it must be")
    return mean, symmetric(covariance), factor


def rate_at(rate: Rate, step: int) -> float:
    """The learning rate in force.

    Raises:
        ValueError: it is not positive and finite.
    """
    value = rate(step) if callable(rate) else rate
    if not 0 < value < math.inf:
        raise ValueError(f"learning_rate is {value} at step {step}; it must be positive and finite")
    return value


def evaluate(score: Score, draws: Tensor, generator: torch.Generator, step: int) -> Tensor:
    """The scores of the draws, (S, D) both.

    Raises:
        ValueError: ``score`` returns another shape.
        FloatingPointError: a score is not finite, or so large that its square is not.
    """
    scores = score(draws, generator).detach().to(draws)
    if scores.shape != draws.shape:
        raise ValueError(f"score returned shape {tuple(scores.shape)}; for these draws it must be {tuple(draws.shape)}")
    if not scores.square().sum().isfinite():
        raise FloatingPointError(f"the scores at step {step} are not finite: the iterates diverge, or the score fails")
    return scores


def iterate(
    update: Update,
    score: Score,
    mean: Tensor,
    covariance: Tensor,
    *,
    steps: int,
    draws: int,
    generator: torch.Generator,
    trace: Trace | None,
) -> GaussianApproximation:
    """The loop of a method whose update is in closed form: draw from the anchor, score, update.

    Raises:
        ValueError: from :func:`prepare` and :func:`evaluate`.
        FloatingPointError: an iterate is not finite, or its covariance is no longer positive definite in float64.
    """
    mean, covariance, factor = prepare(mean, covariance, steps, draws)
    if trace:
        trace(0, 0, mean, covariance)
    for step in range(steps):
        noise = torch.randn(draws, len(mean), generator=generator, dtype=mean.dtype, device=mean.device)
        thetas = mean + noise @ factor.mT
        scores = evaluate(score, thetas, generator, step)
        try:
            mean, covariance = update(step, mean, covariance, thetas, scores)
            covariance = symmetric(covariance)  # rounding would add up
            factor = torch.linalg.cholesky(covariance)
        except torch.linalg.LinAlgError as error:
            problem = "the iterates diverge, or the start is too wide for float64"
            raise FloatingPointError(f"the covariance is not positive definite at step {step}: {problem}") from error
        if not (mean.isfinite().all() and factor.isfinite().all()):
            raise FloatingPointError(f"diverged at step {step}: mean or covariance is not finite")
        if trace:
            trace(step + 1, (step + 1) * draws, mean, covariance)
    return GaussianApproximation(mean, covariance)


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part."""
    return (matrix + matrix.mT) / 2
