"""ADVI: stochastic gradient ascent on the ELBO of a Gaussian, by reparametrised draws.

    ELBO(m, L) = E log p(theta) + sum_i log L_ii + const,     theta = m + L eps,   eps ~ N(0, I)

    d/dm = E s(theta)          d/dL = tril(E s(theta) eps^T) + diag(1 / L_ii)          d/d log L_ii = L_ii d/dL_ii

L is lower triangular (full-rank) or diagonal (mean-field). The gradient needs the score s = grad log p only, and is
unbiased when the score is: mini-batches do no harm besides their noise. The optimizer is Adam, over m, log L_ii and the
entries below the diagonal. Of a Gaussian target N(m, A^-1) the optimum is the target itself or, mean-field, the exact
mean with the precision diag(A). Source: A. Kucukelbir et al., arXiv 1603.00788; Adam: D. Kingma and J. Ba, arXiv
1412.6980.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.methods.references.gaussian import (
    GaussianApproximation,
    Rate,
    Score,
    Trace,
    evaluate,
    prepare,
    rate_at,
    symmetric,
)


def elbo_gradient(factor: Tensor, noise: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unbiased estimate of the ELBO's derivatives by m (D,), by log L_ii (D,) and by the entries of L below the diagonal
    (D, D).

    Args:
        factor: L, (D, D) lower triangular.
        noise, scores: eps and s(m + L eps), (S, D) both.
    """
    outer = scores.mT @ noise / len(noise)
    return scores.mean(0), outer.diagonal() * factor.diagonal() + 1, outer.tril(-1)


def fit(
    score: Score,
    mean: Tensor,
    covariance: Tensor,
    *,
    steps: int,
    draws: int,
    generator: torch.Generator,
    full_rank: bool = True,
    learning_rate: Rate = 0.01,
    trace: Trace | None = None,
) -> GaussianApproximation:
    """ADVI from N(mean, covariance), in float64.

    Args:
        score: draws (S, D) and the generator to scores (S, D), the gradients of the log joint density.
        mean, covariance: the start, (D,) and (D, D).
        steps: Adam steps.
        draws: S, score evaluations per step.
        generator: of the draws; also passed to ``score``. On the device of the mean.
        full_rank: any covariance; otherwise a diagonal one (mean-field), which the start has to be then.
        learning_rate: Adam's, in units of theta and of log L_ii; a number or a function of the step. Under a constant
            one the iterates keep fluctuating about the optimum.
        trace: called with (steps done, evaluations done, mean, covariance) at the start and after every step.

    Raises:
        ValueError: names a setting and what would be right.
        FloatingPointError: scores or iterates are not finite; names the step.
    """
    mean, covariance, factor = prepare(mean, covariance, steps, draws)
    if not full_rank and covariance.count_nonzero() > len(mean):
        raise ValueError("covariance is not diagonal; with full_rank=False it must be")
    below, log_diagonal = factor.tril(-1), factor.diagonal().log()
    optimizer = torch.optim.Adam([mean, log_diagonal, *([below] if full_rank else [])], maximize=True)
    if trace:
        trace(0, 0, mean.clone(), covariance)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate_at(learning_rate, step)
        noise = torch.randn(draws, len(mean), generator=generator, dtype=mean.dtype, device=mean.device)
        scores = evaluate(score, mean + noise @ factor.mT, generator, step)
        mean.grad, log_diagonal.grad, below.grad = elbo_gradient(factor, noise, scores)
        optimizer.step()
        factor = below + log_diagonal.exp().diag()
        if not (mean.isfinite().all() and factor.isfinite().all()):
            raise FloatingPointError(f"diverged at step {step}: mean or covariance is not finite")
        if trace:
            trace(step + 1, (step + 1) * draws, mean.clone(), symmetric(factor @ factor.mT))
    return GaussianApproximation(mean.clone(), symmetric(factor @ factor.mT))
