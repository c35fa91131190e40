"""CRPS against its definition, integrated numerically over scipy's distribution functions, and against double sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from proxscore.calibration import crps_gaussian, crps_samples, crps_student_t
from proxscore.config import ConfigError

CASES = [(0.0, 1.0, 0.0), (2.0, 0.5, 3.7), (-1.0, 3.0, -9.0), (10_000.0, 1.0, 10_002.0)]


def by_integration(distribution: stats.rv_continuous, y: float) -> float:
    """Integral of (F(t) - [t >= y])^2, split at y where the integrand jumps."""
    below, _ = integrate.quad(lambda t: distribution.cdf(t) ** 2, -math.inf, y, limit=200)
    above, _ = integrate.quad(lambda t: distribution.sf(t) ** 2, y, math.inf, limit=200)
    return below + above


@pytest.mark.parametrize(("mean", "scale", "y"), CASES)
def test_gaussian_score_is_the_integral_of_its_definition(mean: float, scale: float, y: float) -> None:
    m, s, t = torch.tensor([mean, scale, y], dtype=torch.float64)
    expected = by_integration(stats.norm(mean, scale), y)
    assert float(crps_gaussian(m, s, t)) == pytest.approx(expected, rel=1e-6)
    assert float(crps_gaussian(m.float(), s.float(), t.float())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("df", [1.2, 2.0, 4.5, 60.0])
@pytest.mark.parametrize(("loc", "scale", "y"), CASES)
def test_student_t_score_is_the_integral_of_its_definition(df: float, loc: float, scale: float, y: float) -> None:
    v, m, s, t = torch.tensor([df, loc, scale, y], dtype=torch.float64)
    # At 1.2 degrees of freedom the squared tails fall as t**-2.4, which quad integrates less exactly.
    expected = by_integration(stats.t(df, loc, scale), y)
    assert float(crps_student_t(v, m, s, t)) == pytest.approx(expected, rel=1e-5)


def test_student_t_score_is_elementwise_keeps_the_dtype_and_tends_to_the_gaussian_one() -> None:
    loc, scale, y = torch.tensor([0.0, 1.0]), torch.tensor([[1.0], [2.0]]), torch.tensor([0.3, -4.0])
    score = crps_student_t(torch.tensor(1e9), loc, scale, y)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, crps_gaussian(loc, scale, y), rtol=1e-6, atol=1e-6)


def test_student_t_score_is_infinite_without_a_mean() -> None:
    one = torch.ones(3)
    assert crps_student_t(torch.tensor([0.5, 1.0, 1.5]), one, one, one).isinf().tolist() == [True, True, False]


@pytest.mark.parametrize("fair", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_score_equals_the_double_sum(fair: bool, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    samples, y = generator.normal(size=(7, 4, 3)) + 1000, generator.normal(size=(4, 3)) + 1000
    samples[:3] = samples[3]  # ties
    pairs = np.abs(samples[:, None] - samples[None]).sum((0, 1)) / (7 * 6 if fair else 49)
    expected = np.abs(samples - y).mean(0) - pairs / 2
    found = crps_samples(torch.as_tensor(samples, dtype=dtype), torch.as_tensor(y, dtype=dtype), fair=fair)
    assert found.dtype == dtype
    # float32 holds 1000 to 6e-5.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 3e-4)


def test_score_of_the_empirical_distribution_is_the_integral_over_its_steps() -> None:
    samples = torch.tensor([0.0, 1.0, 1.0, 4.0], dtype=torch.float64)
    t = np.linspace(-1, 6, 7_000_001)
    step = np.searchsorted(samples.numpy(), t, side="right") / 4
    expected = np.trapezoid((step - (t >= 2.5)) ** 2, t)
    found = float(crps_samples(samples, torch.tensor(2.5, dtype=torch.float64), fair=False))
    assert found == pytest.approx(expected, abs=1e-5)


def test_fair_score_of_five_samples_is_unbiased_and_the_other_one_too_large_by_half_the_mean_distance_over_s() -> None:
    repeats = 200_000
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(5, repeats, generator=generator, dtype=torch.float64)
    y = torch.full((repeats,), 0.7, dtype=torch.float64)
    exact = by_integration(stats.norm, 0.7)
    bias = (2 / math.sqrt(math.pi)) / (2 * 5)  # E|X - X'| = 2 / sqrt(pi) for standard normals
    for fair, expected in ((True, exact), (False, exact + bias)):
        scores = crps_samples(samples, y, fair=fair)
        # About 0.0007; the bias is 0.113.
        error = float(scores.std()) / math.sqrt(repeats)
        assert error < 0.001
        assert float(scores.mean()) == pytest.approx(expected, abs=4 * error)


def test_score_of_identical_samples_is_the_absolute_error() -> None:
    y = torch.tensor([1.0, -3.0])
    assert crps_samples(torch.zeros(6, 2), y).tolist() == [1.0, 3.0]


def test_score_is_not_rounded_by_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, y = torch.randn(50, 8, generator=generator), torch.zeros(8)
    expected = crps_samples(samples, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crps_samples(samples, y), expected)


def test_too_few_samples_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 are too few; the CRPS needs 2"):
        crps_samples(torch.zeros(1, 3), torch.zeros(3))
    assert crps_samples(torch.zeros(1, 3), torch.ones(3), fair=False).tolist() == [1.0] * 3
    with pytest.raises(ConfigError, match=r"shapes \(5, 3\) and \(4,\)"):
        crps_samples(torch.zeros(5, 3), torch.zeros(4))
