"""The update of Gaussian score matching against its definition, min KL(q_t || q) subject to score_q(theta) = g."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from proxscore.methods.references import gsm

D = 5


def anchor_and_draws(seed: int, draws: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A mean, a covariance, draws and scores that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    thetas, scores = torch.randn(2, draws, D, generator=generator, dtype=torch.float64)
    return mean, root @ root.T + torch.eye(D), thetas, 10**seed * scores


@pytest.mark.parametrize("seed", range(4))
def test_after_the_update_with_one_draw_the_score_at_the_draw_is_the_targets(seed: int) -> None:
    mean, covariance, draws, scores = anchor_and_draws(seed, draws=1)
    mean, covariance = gsm.update(mean, covariance, draws, scores)
    draw = draws[0].requires_grad_()
    MultivariateNormal(mean, covariance).log_prob(draw).backward()
    torch.testing.assert_close(draw.grad, scores[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_of_all_gaussians_with_that_score_the_update_is_nearest_to_the_anchor(seed: int) -> None:
    """Any covariance meets the constraint with the mean theta + Sigma g: KL(q_t || q) is stationary in Sigma, here
    L (I + T)(I + T)^T L^T with a lower triangular T at zero, so that the gradient has no units."""
    mean, covariance, draws, scores = anchor_and_draws(seed, draws=1)
    factor = torch.linalg.cholesky(gsm.update(mean, covariance, draws, scores)[1])
    change = torch.zeros(D, D, dtype=torch.float64, requires_grad=True)
    changed = factor @ (torch.eye(D) + change.tril())
    candidate = MultivariateNormal(draws[0] + changed @ (changed.T @ scores[0]), scale_tril=changed)
    divergence = kl_divergence(MultivariateNormal(mean, covariance), candidate)
    (gradient,) = torch.autograd.grad(divergence, change)
    assert gradient.abs().max() < 1e-8 * divergence


def test_several_draws_give_the_average_of_the_single_draws_updates() -> None:
    mean, covariance, draws, scores = anchor_and_draws(0, draws=7)
    singles = [gsm.update(mean, covariance, draws[i : i + 1], scores[i : i + 1]) for i in range(7)]
    together = gsm.update(mean, covariance, draws, scores)
    for index in range(2):
        torch.testing.assert_close(together[index], torch.stack([single[index] for single in singles]).mean(0))
