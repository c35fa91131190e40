"""Gaussian score matching: the Gaussian nearest to the anchor whose score at a draw is the target's.

    q = argmin KL(q_t || q)   subject to   grad log q(theta) = g,        theta ~ q_t,  g = score(theta)

The constraint says m - theta = Sigma g. Put into the divergence it leaves a function of Sigma alone, whose stationary
point is

    Sigma + Sigma g g^T Sigma = V,     V = Sigma_t + (m_t - theta)(m_t - theta)^T

Multiplied by g: Sigma g = V g / (1 + rho), where rho = g^T Sigma g >= 0 solves rho (1 + rho) = g^T V g. Hence

    m = theta + V g / (1 + rho),       Sigma = V - V g g^T V / (1 + rho)^2

With several draws the new mean and covariance are the averages of the single draws' ones. On a Gaussian target the
exact posterior is a fixed point whatever the draws; with noisy scores it is not, see :mod:`bam`, of which this is the
limit of one draw and an infinite learning rate. Source: C. Modi et al., arXiv 2307.07849.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.methods.references.gaussian import GaussianApproximation, Score, Trace, iterate


def update(mean: Tensor, covariance: Tensor, draws: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The average over the draws of the single-draw solutions (m, Sigma) above; O(S D^2).

    Args:
        mean, covariance: of the anchor, (D,) and (D, D).
        draws, scores: (S, D) both.
    """
    offset = mean - draws
    pulled = scores @ covariance + offset * (offset * scores).sum(1, keepdim=True)  # V g
    power = (scores * pulled).sum(1, keepdim=True)  # rho (1 + rho)
    moved = pulled / ((1 + (1 + 4 * power).sqrt()) / 2)  # Sigma g = m - theta
    return (draws + moved).mean(0), covariance + (offset.mT @ offset - moved.mT @ moved) / len(draws)


def fit(
    score: Score,
    mean: Tensor,
    covariance: Tensor,
    *,
    steps: int,
    draws: int,
    generator: torch.Generator,
    trace: Trace | None = None,
) -> GaussianApproximation:
    """Gaussian score matching from N(mean, covariance), in float64.

    Args:
        score: draws (S, D) and the generator to scores (S, D), the gradients of the log joint density.
        mean, covariance: the start, (D,) and (D, D).
        steps: updates.
        draws: S, score evaluations per step.
        generator: of the draws; also passed to ``score``. On the device of the mean.
        trace: called with (steps done, evaluations done, mean, covariance) at the start and after every step.

    Raises:
        ValueError: names a setting and what would be right.
        FloatingPointError: scores or iterates are not finite, or the covariance is not positive definite; names the step.
    """

    return iterate(
        lambda _, *anchor: update(*anchor),
        score,
        mean,
        covariance,
        steps=steps,
        draws=draws,
        generator=generator,
        trace=trace,
    )
