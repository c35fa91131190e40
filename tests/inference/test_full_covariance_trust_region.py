"""The full covariance's step at few draws: from starts that are far too wide, and within its trust region."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from proxscore.inference import ForwardKL, FullCovariance, NoPenalty, Quadratic, ReverseKL, Schedule
from proxscore.inference.penalties import Penalty
from proxscore.inference.step import ProximalStep

DOUBLE = dict(dtype=torch.float64)


def correlated(numbers: int, condition: float) -> Tensor:
    """A precision matrix with eigenvalues over this range, and ones on its diagonal afterwards."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(numbers, numbers, generator=generator, **DOUBLE))
    matrix = basis * torch.logspace(0, math.log10(condition), numbers, **DOUBLE) @ basis.mT
    root = matrix.diagonal().rsqrt()
    return root[:, None] * matrix * root


@pytest.mark.parametrize("initial", [1e-4, 1e-2, 1.0])
def test_one_pair_per_step_arrives_from_a_start_that_is_far_too_wide(initial: float) -> None:
    """30 numbers, condition number 1,000, 800 steps of one pair; the initial precision a hundred to ten thousand times too low.
    Shortening log R to the trust region diverged from both (standard deviations 1e11 times the target's and more)."""
    precision = correlated(30, 1e3)
    sd = torch.linalg.inv(precision).diagonal().sqrt()
    family, generator = FullCovariance(), torch.Generator().manual_seed(1)
    state = family.initial(
        torch.full((30,), 3.0, **DOUBLE), torch.full((30,), initial, **DOUBLE), torch.Size([30]), torch.zeros
    )
    cosine = Schedule("cosine", length=800)
    penalty = ForwardKL(8.0, 0.5, cosine, cosine)
    for step in range(800):
        noise = torch.randn(30, generator=generator, **DOUBLE)
        draws = [family.draw(state, noise, torch.empty(0), sign) for sign in (1.0, -1.0)]
        scores = [-precision @ draw for draw in draws]
        curvature = family.curvature(state, noise, scores, torch.zeros(30, **DOUBLE))
        mean_score = (scores[0] + scores[1]) / 2
        settings = ProximalStep(penalty, penalty.weights(step), max_log_precision_step=1.0, max_mean_step=10.0)
        family.step(state, mean_score, curvature, settings, None)
    assert (family.variance(state).sqrt() / sd - 1).abs().max() < 0.01
    assert (state["mean"] / sd).abs().max() < 0.01


@pytest.mark.parametrize("penalty", [ForwardKL(5.0), ReverseKL(5.0), Quadratic(5.0), NoPenalty()])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_the_change_of_the_covariances_logarithm_is_bounded(penalty: Penalty, size: float) -> None:
    """Beyond 32 numbers by the limit times sqrt(32 / D); what is within the bound is the penalty's own solution."""
    family, generator = FullCovariance(), torch.Generator().manual_seed(0)
    noise = torch.randn(50, 50, generator=generator, **DOUBLE) * size
    curvature = torch.eye(50, **DOUBLE) + noise + noise.mT
    state = family.initial(torch.zeros(50, **DOUBLE), torch.ones(50, **DOUBLE), torch.Size([50]), torch.zeros)
    ratio = family.step(
        state, torch.zeros(50, **DOUBLE), curvature, ProximalStep(penalty, (5.0, 2.0), max_log_precision_step=0.5), None
    )
    limit = 0.5 * math.sqrt(32 / 50)
    assert ratio.log().norm() <= limit * (1 + 1e-9)
    if size == 1e-3:
        own = penalty.precision_ratio(torch.linalg.eigvalsh(curvature), 5.0)
        torch.testing.assert_close(ratio, own)
    torch.testing.assert_close(-torch.linalg.slogdet(family.covariance(state)).logabsdet, ratio.log().sum())
