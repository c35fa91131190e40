"""Batch and match: scores matched in the norm of the new covariance, with a KL penalty to the anchor.

    q_{t+1} = argmin_q  mean_b || grad log q(theta_b) - g_b ||^2_{Cov(q)}  +  (2 / lambda) KL(q_t || q)

with theta_1..theta_S ~ q_t and g_b = score(theta_b). Over all Gaussians the minimiser is

    Sigma U Sigma + Sigma = V                                          (U, V below)
    m = m_t / (1 + lambda) + lambda / (1 + lambda) (Sigma g-bar + theta-bar)

    U =           lambda Cov(g)     + lambda / (1 + lambda) g-bar g-bar^T
    V = Sigma_t + lambda Cov(theta) + lambda / (1 + lambda) (m_t - theta-bar)(m_t - theta-bar)^T

where bars and Cov are the draws' means and second central moments (divided by S). With the D x S matrix Q of
:func:`weighted` scores, U = Q Q^T; likewise V - Sigma_t with the displacements theta_b - m_t.

On a Gaussian target the exact posterior is a fixed point whatever the draws. With noisy scores it is not: the power of
the noise stays in U, and the variance shrinks. Source: D. Cai et al., arXiv 2402.14758.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.methods.references.gaussian import GaussianApproximation, Rate, Score, Trace, iterate, rate_at


def weighted(rows: Tensor, weight: float) -> Tensor:
    """Rows (S, D) to rows whose Gram matrix (D, D) is weight Cov(rows) + weight / (1 + weight) mean mean^T."""
    mean = rows.mean(0)
    return ((weight / len(rows)) ** 0.5) * (rows - mean + mean / (1 + weight) ** 0.5)


def full_update(
    mean: Tensor, covariance: Tensor, draws: Tensor, scores: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """The minimiser (m, Sigma) by one Cholesky factorisation and one eigendecomposition of size D; O(D^3 + S D^2).

    With V = L L^T the equation for Sigma = L X L^T reads X (L^T U L) X + X = I: X is the function
    2 / (1 + sqrt(1 + 4 a)) of the symmetric matrix L^T U L, so that Sigma is positive definite by construction.

    Args:
        mean, covariance: of the anchor, (D,) and (D, D).
        draws, scores: (S, D) both.
        weight: lambda, positive.
    """
    displacements = weighted(draws - mean, weight)
    factor = torch.linalg.cholesky(covariance + displacements.mT @ displacements)
    whitened = weighted(scores, weight) @ factor
    values, vectors = torch.linalg.eigh(whitened.mT @ whitened)
    root = factor @ vectors
    new = (root * (2 / (1 + (1 + 4 * values.clamp_min(0)).sqrt()))) @ root.mT
    return _new_mean(mean, new, draws, scores, weight), new


def low_rank_update(
    mean: Tensor, covariance: Tensor, draws: Tensor, scores: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """The same minimiser through S x S matrices, for fewer draws than dimensions; O(S D^2 + S^3).

    With P = Sigma Q the equation reads Sigma = V - P P^T. Multiplied by Q, P (I + M) = V Q and Q^T V Q = M (I + M) for
    the S x S matrix M = Q^T Sigma Q, so that I + M = I/2 + sqrt(Q^T V Q + I/4) and

        Sigma = V - V Q [I/2 + sqrt(Q^T V Q + I/4)]^-2 Q^T V

    The subtraction loses digits where one update shrinks the variance by many orders of magnitude. Arguments as for
    :func:`full_update`.
    """
    displacements, score_rows = weighted(draws - mean, weight), weighted(scores, weight)
    v = covariance + displacements.mT @ displacements
    pulled = v @ score_rows.mT
    values, vectors = torch.linalg.eigh(score_rows @ pulled)
    p = (pulled @ vectors) / (0.5 + (values.clamp_min(0) + 0.25).sqrt())
    new = v - p @ p.mT
    return _new_mean(mean, new, draws, scores, weight), new


def _new_mean(mean: Tensor, new_covariance: Tensor, draws: Tensor, scores: Tensor, weight: float) -> Tensor:
    return mean + weight / (1 + weight) * (new_covariance @ scores.mean(0) + (draws - mean).mean(0))


def fit(
    score: Score,
    mean: Tensor,
    covariance: Tensor,
    *,
    steps: int,
    draws: int,
    generator: torch.Generator,
    learning_rate: Rate | None = None,
    trace: Trace | None = None,
) -> GaussianApproximation:
    """Batch and match from N(mean, covariance), in float64; the low-rank update where draws < D.

    A step costs O(S D^2 + S^3) with the low-rank update and O(D^3 + S D^2) with the full one, besides the anchor's
    Cholesky factor for the draws, D^3 / 3.

    Args:
        score: draws (S, D) and the generator to scores (S, D), the gradients of the log joint density.
        mean, covariance: the start, (D,) and (D, D).
        steps: updates.
        draws: S, score evaluations per step.
        generator: of the draws; also passed to ``score``. On the device of the mean.
        learning_rate: lambda, a number or a function of the step. None is the paper's S D / (step + 1); with fewer draws
            than dimensions it may fall before the mean has arrived, and a constant one (about 1) is safer.
        trace: called with (steps done, evaluations done, mean, covariance) at the start and after every step.

    Raises:
        ValueError: names a setting and what would be right.
        FloatingPointError: scores or iterates are not finite, or the covariance is not positive definite; names the step.
    """
    dimension = mean.numel()
    rate: Rate = (lambda step: draws * dimension / (step + 1)) if learning_rate is None else learning_rate
    solve = low_rank_update if draws < dimension else full_update

    def update(step: int, mean: Tensor, covariance: Tensor, draws: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return solve(mean, covariance, draws, scores, rate_at(rate, step))

    return iterate(update, score, mean, covariance, steps=steps, draws=draws, generator=generator, trace=trace)
