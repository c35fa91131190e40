"""Reverse Kullback-Leibler, quadratic and no penalty: the closed-form minimisers of score-matching loss plus penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from torch.distributions import Normal, kl_divergence

from proxscore.inference import ForwardKL, NoPenalty, Quadratic, ReverseKL
from proxscore.inference.penalties import SMALLEST_RATIO, Penalty

INF = float("inf")

#: P's precision part per unit of its weight, by penalty, and its mean part for d and r.
PRECISION: dict[type[Penalty], Callable[[float], float]] = {
    ForwardKL: lambda r: r - 1 - math.log(r),
    ReverseKL: lambda r: math.log(r) + 1 / r - 1,
    Quadratic: lambda r: (r - 1) ** 2 / 2,
    NoPenalty: lambda r: 0.0,
}
MEAN: dict[type[Penalty], Callable[[float, float], float]] = {
    ForwardKL: lambda d, r: d**2 / r,
    ReverseKL: lambda d, r: d**2 / r**2,
    Quadratic: lambda d, r: d**2,
    NoPenalty: lambda d, r: 0.0,
}
NEW = [ReverseKL(), Quadratic(), NoPenalty()]
EVERY = [ForwardKL(), *NEW]


def names(penalties: list[Penalty]) -> list[str]:
    return [type(penalty).__name__ for penalty in penalties]


def ratio(penalty: Penalty, curvature: list[float], weight: float, dtype: torch.dtype = torch.float64) -> list[float]:
    result = penalty.precision_ratio(torch.tensor(curvature, dtype=dtype), weight)
    return result.tolist()


def mean_step(penalty: Penalty, u: float, r: float, weight: float) -> float:
    tensors = [torch.tensor([value], dtype=torch.float64) for value in (u, r)]
    step = penalty.mean_step(tensors[0], tensors[1], weight)
    return step.item()


# ------------------------------------------------------------ the precision


def nearest_minimum(k: float, kappa: float) -> float:
    """The minimum of (r - k)^2 / 2 + kappa (log r + 1 / r - 1) that descent from r = 1 meets first in [1/3, 3], or the
    end of that interval where it meets none: by a search of the derivative's sign, then bisection."""

    def slope(r: float) -> float:
        return r - k + kappa * (1 / r - 1 / r**2)

    path = np.linspace(1.0, 3.0 if k > 1 else 1 / 3, 20_001)
    start = np.sign(slope(1.0))
    for low, high in pairwise(path):
        if np.sign(slope(high)) != start:
            return float(brentq(slope, low, high, xtol=1e-14))
    return float(path[-1])


@pytest.mark.parametrize("kappa", [0.1, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("k", [-40.0, -1.0, 0.0, 0.5, 1.1, 2.0, 5.0, 8.0, 60.0])
def test_the_reverse_divergences_ratio_is_the_minimum_nearest_to_the_anchor(k: float, kappa: float) -> None:
    (r,) = ratio(ReverseKL(), [k], kappa)
    assert r == pytest.approx(nearest_minimum(k, kappa), rel=1e-7)

    def objective(log_r: float) -> float:
        return (math.exp(log_r) - k) ** 2 / 2 + kappa * PRECISION[ReverseKL](math.exp(log_r))

    if 1 / 3 < r < 3:  # a minimum by values also, not a root of the derivative alone
        found = minimize_scalar(objective, bounds=(math.log(r) - 0.02, math.log(r) + 0.02), method="bounded")
        assert objective(math.log(r)) <= found.fun + 1e-12 * (kappa + abs(found.fun))
        assert found.x == pytest.approx(math.log(r), abs=1e-4)


@pytest.mark.parametrize(("k", "kappa"), [(60.0, 30.0), (1e4, 1000.0), (1e6, 1.0), (300.0, 1000.0)])
def test_without_a_minimum_above_the_anchor_the_reverse_divergences_ratio_is_three(k: float, kappa: float) -> None:
    """The penalty grows as log r: a statistic beyond about kappa / 4 outweighs it; r stops at the largest allowed."""
    assert nearest_minimum(k, kappa) == 3.0
    assert ratio(ReverseKL(), [k], kappa) == [3.0]


@pytest.mark.parametrize(("k", "kappa"), [(-40.0, 0.1), (-1e6, 1000.0), (0.0, 0.01)])
def test_a_minimum_below_a_third_is_cut_off_at_a_third(k: float, kappa: float) -> None:
    assert ratio(ReverseKL(), [k], kappa) == pytest.approx([1 / 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 27.0, 1e3, 1e6])
def test_the_reverse_divergences_ratio_grows_with_the_statistic(kappa: float, dtype: torch.dtype) -> None:
    """Over six decades on both sides, also where a minimum comes and goes; no value is left out or not finite."""
    curvature = [-(10.0**p) for p in range(6, -7, -1)] + [0.0] + [10.0**p for p in range(-6, 7)]
    curvature = sorted(curvature + [1 + kappa * 0.25 * f for f in (0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0)])
    ratios = ratio(ReverseKL(), curvature, kappa, dtype)
    assert all(1 / 3 - 1e-6 <= r <= 3 for r in ratios)
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(ratios))


@pytest.mark.parametrize("kappa", [0.1, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("k", [-40.0, -1.0, 0.5, 2.0, 60.0])
@pytest.mark.parametrize("penalty", [Quadratic(), NoPenalty()], ids=["Quadratic", "NoPenalty"])
def test_the_quadratic_and_the_missing_penaltys_ratios_are_minimisers(penalty: Penalty, k: float, kappa: float) -> None:
    """Over all real r, as the objective is convex, and then cut off: they may be negative, so the trust region is needed."""
    found = minimize_scalar(lambda r: (r - k) ** 2 / 2 + kappa * PRECISION[type(penalty)](r))
    assert not penalty.positive
    assert ratio(penalty, [k], kappa) == pytest.approx([max(found.x, SMALLEST_RATIO)], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 7.0, 1e3, 1e6])
@pytest.mark.parametrize("penalty", NEW, ids=names(NEW))
def test_the_precision_stays_where_the_statistic_is_one(penalty: Penalty, kappa: float, dtype: torch.dtype) -> None:
    below, one, above = ratio(penalty, [0.9, 1.0, 1.1], kappa, dtype)
    assert one == pytest.approx(1.0, abs=4 * torch.finfo(dtype).eps)
    if kappa < 1e6 or dtype == torch.float64:
        assert below < one < above


# ------------------------------------------------------------ the mean


@pytest.mark.parametrize("kappa", [0.1, 4.5, 100.0])
@pytest.mark.parametrize(("u", "r"), [(2.3, 1.6), (-0.7, 0.4)])
@pytest.mark.parametrize("penalty", NEW, ids=names(NEW))
def test_the_mean_step_minimises_loss_plus_penalty_given_the_ratio(
    penalty: Penalty, u: float, r: float, kappa: float
) -> None:
    """d minimises (d - u)^2 / 2 + kappa P(d, r); the mean moves by d / r standard deviations."""
    found = minimize_scalar(lambda d: (d - u) ** 2 / 2 + kappa * MEAN[type(penalty)](d, r))
    assert mean_step(penalty, u, r, kappa) == pytest.approx(found.x / r, rel=1e-6)


@pytest.mark.parametrize("penalty", EVERY, ids=names(EVERY))
def test_infinite_weights_leave_everything_where_it_is(penalty: Penalty) -> None:
    assert ratio(penalty, [-1e6, 0.0, 0.5, 1e6], INF) == [1.0] * 4
    assert mean_step(penalty, 3.0, 1.0, INF) == 0.0
    assert mean_step(penalty, -3.0, 0.7, INF) == 0.0


# ------------------------------------------------------------ against divergences, and each other


@pytest.mark.parametrize(("r", "d"), [(1.7, 0.4), (0.6, -0.9)])
def test_the_reverse_penalty_is_the_divergence_from_candidate_to_anchor(r: float, d: float) -> None:
    """KL(N(d / r, 1 / r) || N(0, 1)): half the penalty with both weights 1."""
    candidate = Normal(torch.tensor(d / r, dtype=torch.float64), torch.tensor(r**-0.5, dtype=torch.float64))
    divergence = kl_divergence(candidate, Normal(torch.zeros((), dtype=torch.float64), 1.0)).item()
    assert 2 * divergence == pytest.approx(PRECISION[ReverseKL](r) + MEAN[ReverseKL](d, r), rel=1e-7)


@pytest.mark.parametrize("direction", [(1.0, 0.5), (-1.0, 1.0), (0.3, -1.0)])
def test_the_quadratic_penalty_is_the_divergence_to_second_order(direction: tuple[float, float]) -> None:
    """The error is of third order: halving the distance from the anchor divides it by eight, within a fifth."""

    def error(size: float) -> float:
        r, d = 1 + size * direction[0], size * direction[1]
        candidate = Normal(torch.tensor(d / r, dtype=torch.float64), torch.tensor(r**-0.5, dtype=torch.float64))
        divergence = kl_divergence(Normal(torch.zeros((), dtype=torch.float64), 1.0), candidate).item()
        return 2 * divergence - PRECISION[Quadratic](r) - MEAN[Quadratic](d, r)

    assert error(0.02) / error(0.01) == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize(
    "penalty", [ForwardKL(), ReverseKL(), Quadratic()], ids=["ForwardKL", "ReverseKL", "Quadratic"]
)
@pytest.mark.parametrize("k", [-2.0, 0.3, 1.5, 6.0])
def test_under_a_large_weight_all_penalties_take_the_natural_gradient_step(penalty: Penalty, k: float) -> None:
    """kappa (r - 1) -> k - 1 and 2 kappa (step of the mean) -> u, with errors that fall as 1 / kappa."""
    for kappa in (1e3, 1e4, 1e5):
        (r,) = ratio(penalty, [k], kappa)
        assert kappa * (r - 1) == pytest.approx(k - 1, abs=60 / kappa)
        assert 2 * kappa * mean_step(penalty, k, r, kappa) == pytest.approx(k, abs=60 / kappa)
