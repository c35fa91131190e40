"""The ELBO's gradient from scores alone against autograd through the reparametrised draws."""

from __future__ import annotations

import torch
from torch import Tensor

from proxscore.methods.references.advi import elbo_gradient

D, S = 4, 7


def log_joint(theta: Tensor) -> Tensor:
    """A target with skewness and coupling, up to a constant."""
    return -(theta.exp() - theta).sum(-1) - (theta[..., 0] * theta[..., 1]) ** 2


def test_the_gradient_from_scores_is_the_derivative_of_the_elbo_estimate_with_the_same_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(S, D, generator=generator, dtype=torch.float64)
    mean = torch.randn(D, generator=generator, dtype=torch.float64).requires_grad_()
    log_diagonal = torch.randn(D, generator=generator, dtype=torch.float64).requires_grad_()
    below = torch.randn(D, D, generator=generator, dtype=torch.float64).tril(-1).requires_grad_()
    factor = below.tril(-1) + log_diagonal.exp().diag()
    draws = mean + noise @ factor.T
    elbo = log_joint(draws).mean() + factor.logdet()
    expected = torch.autograd.grad(elbo, (mean, log_diagonal, below), retain_graph=True)
    (scores,) = torch.autograd.grad(log_joint(draws).sum(), draws)
    torch.testing.assert_close(elbo_gradient(factor.detach(), noise, scores), expected)
