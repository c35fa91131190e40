"""BaM's two closed forms against the objective that they minimise, each other, and Gaussian score matching."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from proxscore.methods.references import bam, gsm

D = 6


def anchor_and_draws(draws: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A mean, a covariance, draws and scores that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(draws)
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64)
    thetas, scores = torch.randn(2, draws, D, generator=generator, dtype=torch.float64)
    return mean, root @ root.T + torch.eye(D), thetas, 3 * scores + 1


@pytest.mark.parametrize("weight", [0.1, 50.0])
@pytest.mark.parametrize(
    ("update", "draws"),
    [(bam.full_update, 3), (bam.full_update, 20), (bam.low_rank_update, 1), (bam.low_rank_update, 3)],
)
def test_the_update_is_a_stationary_point_of_the_papers_objective(
    update: Callable[..., tuple[Tensor, Tensor]], draws: int, weight: float
) -> None:
    anchor_mean, anchor_covariance, thetas, scores = anchor_and_draws(draws)

    def objective(mean: Tensor, factor: Tensor) -> Tensor:
        candidate = MultivariateNormal(mean, scale_tril=factor.tril())
        covariance = candidate.covariance_matrix
        gaps = torch.linalg.solve(covariance, (mean - thetas).T).T - scores
        loss = ((gaps @ covariance) * gaps).sum(1).mean()
        return loss + 2 / weight * kl_divergence(MultivariateNormal(anchor_mean, anchor_covariance), candidate)

    mean, covariance = update(anchor_mean, anchor_covariance, thetas, scores, weight)
    mean, factor = mean.requires_grad_(), torch.linalg.cholesky(covariance).requires_grad_()
    for gradient in torch.autograd.grad(objective(mean, factor), (mean, factor)):
        assert gradient.abs().max() < 1e-8
    # Elsewhere it is not: the bound above means something.
    for gradient in torch.autograd.grad(objective(mean + 1e-3, 1.001 * factor), (mean, factor)):
        assert gradient.abs().max() > 1e-5


@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("draws", [1, 2, 5, 12])
def test_the_low_rank_update_is_the_full_update(draws: int, weight: float) -> None:
    """To rounding: the low-rank update subtracts matrices of the size of the weight."""
    problem = anchor_and_draws(draws)
    for low_rank, full in zip(bam.low_rank_update(*problem, weight), bam.full_update(*problem, weight), strict=True):
        torch.testing.assert_close(low_rank, full, rtol=1e-9, atol=1e-12 * max(1, weight))


def test_with_fewer_draws_than_dimensions_fit_decomposes_matrices_of_the_draws_number_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(matrix))
        return torch.linalg._original_eigh(matrix)

    monkeypatch.setattr(torch.linalg, "_original_eigh", torch.linalg.eigh, raising=False)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    for draws in (2, D - 1, D, 20):
        bam.fit(
            lambda thetas, _: -thetas,
            torch.zeros(D),
            torch.eye(D),
            steps=1,
            draws=draws,
            generator=torch.Generator().manual_seed(0),
        )
    assert sizes == [2, D - 1, D, D]


def test_one_draw_and_an_infinite_learning_rate_is_gaussian_score_matching() -> None:
    """The difference is of the order of 1 / learning rate."""
    problem = anchor_and_draws(1)
    for matched, nearest in zip(bam.low_rank_update(*problem, 1e9), gsm.update(*problem), strict=True):
        torch.testing.assert_close(matched, nearest, rtol=1e-6, atol=1e-6)
