"""The closed-form minimisers of score-matching loss plus forward Kullback-Leibler penalty."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.distributions import Normal, kl_divergence

from proxscore.inference import ForwardKL


def ratio(curvature: list[float], weight: float, dtype: torch.dtype = torch.float64) -> list[float]:
    result = ForwardKL().precision_ratio(torch.tensor(curvature, dtype=dtype), weight)
    return result.tolist()


@pytest.mark.parametrize("kappa", [0.1, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("k", [-40.0, -1.0, 0.0, 0.5, 1.0, 2.0, 60.0])
def test_the_precision_ratio_minimises_loss_plus_penalty(k: float, kappa: float) -> None:
    def objective(log_r: float) -> float:
        r = math.exp(log_r)
        return (r - k) ** 2 / 2 + kappa * (r - 1 - log_r)

    found = minimize_scalar(objective, bounds=(-12, 6), method="bounded", options={"xatol": 1e-10})
    (r,) = ratio([k], kappa)
    assert r == pytest.approx(math.exp(found.x), rel=1e-5)
    assert objective(math.log(r)) <= found.fun + 1e-12 * (kappa + abs(found.fun))


def test_the_penalty_is_the_divergence_between_anchor_and_candidate() -> None:
    """KL(N(0, 1) || N(d / r, 1 / r)) = [(r - 1 - log r) + d^2 / r] / 2: half the penalty with both weights 1."""
    r, d = 1.7, 0.4
    candidate = Normal(torch.tensor(d / r, dtype=torch.float64), torch.tensor(r**-0.5, dtype=torch.float64))
    divergence = kl_divergence(Normal(torch.zeros((), dtype=torch.float64), 1.0), candidate).item()
    assert 2 * divergence == pytest.approx((r - 1 - math.log(r)) + d**2 / r, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 7.0, 1e3, 1e6])
def test_the_precision_stays_exactly_where_the_curvature_statistic_is_one(kappa: float, dtype: torch.dtype) -> None:
    (one, below, above) = ratio([1.0, 0.99, 1.01], kappa, dtype)
    assert one == pytest.approx(1.0, abs=4 * torch.finfo(dtype).eps)
    if kappa < 1e6 or dtype == torch.float64:
        assert below < one < above


@pytest.mark.parametrize("kappa", [1e-3, 1.0, 1e3, 1e6])
def test_single_precision_ratios_are_accurate_and_positive_for_extreme_curvature(kappa: float) -> None:
    """Against 60 digits: no cancellation, whichever sign k - kappa has."""
    curvature = [sign * 10.0**power for sign in (-1, 1) for power in range(-6, 7)] + [0.0]
    with mpmath.workdps(60):
        for k, r in zip(curvature, ratio(curvature, kappa, torch.float32), strict=True):
            a = mpmath.mpf(torch.tensor(k, dtype=torch.float32).item()) - mpmath.mpf(kappa)
            exact = (a + mpmath.sqrt(a * a + 4 * mpmath.mpf(kappa))) / 2
            assert r > 0
            # k - kappa is rounded once, by at most eps * kappa / 2; the rest is relative rounding.
            slope = exact / mpmath.sqrt(a * a + 4 * mpmath.mpf(kappa))
            error = 6e-8 * (abs(a) * slope + 8 * exact)
            assert abs(mpmath.mpf(r) - exact) <= error


def test_an_infinite_weight_leaves_the_precision_alone() -> None:
    assert ratio([-1e6, 0.0, 1e6], float("inf")) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kappa", [0.1, 4.5, 100.0])
def test_the_mean_step_minimises_loss_plus_penalty_at_the_new_precision(kappa: float) -> None:
    """d minimises (d - u)^2 / 2 + kappa d^2 / r; the mean moves by d / r posterior standard deviations."""
    u, r = 2.3, 1.6
    found = minimize_scalar(lambda d: (d - u) ** 2 / 2 + kappa * d**2 / r)
    step = ForwardKL().mean_step(torch.tensor([u], dtype=torch.float64), torch.tensor([r]), kappa)
    assert step.item() == pytest.approx(found.x / r, rel=1e-6)


def test_the_largest_mean_step_is_that_of_the_documentation() -> None:
    step = ForwardKL().mean_step(torch.ones(1), torch.ones(1), 4.5)
    assert step.item() == pytest.approx(0.1)
