"""Families beside the Student t and the Gaussian, against scipy, and at parameters that are extreme."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from proxscore.forecasting.distributions import Normal, StudentT
from proxscore.forecasting.likelihoods.names import LIKELIHOODS
from proxscore.forecasting.likelihoods.normal_mixture import NormalMixture
from proxscore.forecasting.likelihoods.quantiles import LEVELS, Quantiles
from proxscore.forecasting.likelihoods.student_tail import log_student_cdf
from proxscore.forecasting.likelihoods.truncated import TruncatedNormal, TruncatedStudentT
from proxscore.forecasting.mixtures import StepMixture

PROBABILITIES = (1e-9, 1e-4, 0.05, 0.31, 0.5, 0.77, 0.95, 1 - 1e-4, 1 - 1e-9)
COUNTS = ("negative_binomial", "zero_inflated_negative_binomial")
WITH_JUMPS = (*COUNTS, "zero_inflated_lognormal")
CONTINUOUS = tuple(name for name in LIKELIHOODS if name not in WITH_JUMPS)
NOT_NEGATIVE = tuple(name for name, family in LIKELIHOODS.items() if family.least == 0)


def outputs(name: str, *shape: int, spread: float = 1.0, unit: float = 1.0, seed: int = 0) -> Tensor:
    """Parameters (..., K) of a family, of raw numbers of this size, about 4 and in units of 3."""
    family = LIKELIHOODS[name]()
    raw = spread * torch.randn(*shape, family.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    *others, loc, scale = family.standard(raw)
    return torch.stack([*others, unit * (4 + 3 * loc), unit * 3 * scale], -1)


def positive(values: np.ndarray, width: np.ndarray) -> np.ndarray:
    return np.asarray((values + np.sqrt(values**2 + 0.04 * width**2)) / 2)


def theirs(name: str, parameters: np.ndarray) -> Any:
    """Scipy's distribution of one step; of zero-inflated ones that of what is not zero besides."""
    *others, loc, scale = parameters
    zero = others[0] if name.startswith("zero") else 0.0
    mean = positive(loc, scale) / (1 - zero)
    variance = scale**2 / (1 - zero) - zero * mean**2
    if name == "truncated_normal":
        return stats.truncnorm(-loc / scale, np.inf, loc, scale)
    if name == "normal":
        return stats.norm(loc, scale)
    if name == "student_t":
        return stats.t(*others, loc, scale)
    if name.endswith("lognormal"):
        relative = variance / mean**2 if name == "lognormal" else positive(variance / mean**2, np.array(1.0))
        deviation = np.sqrt(np.log1p(relative))
        return stats.lognorm(deviation, scale=mean * np.exp(-(deviation**2) / 2))
    size = mean / positive(variance / mean - 1, np.array(1.0))
    return stats.nbinom(size, size / (size + mean))


@pytest.mark.parametrize("name", ["truncated_normal", "lognormal", "negative_binomial", "normal", "student_t"])
def test_density_distribution_function_mean_and_variance_are_those_of_scipy(name: str) -> None:
    family, given = LIKELIHOODS[name](), outputs(name, 40)
    values = torch.arange(40.0, dtype=torch.float64) if family.counts else 0.1 + torch.arange(40.0).double() / 3
    for row, value in zip(range(40), values, strict=True):
        own, one = theirs(name, given[row].numpy()), given[row : row + 1]
        density = own.logpmf(value) if family.counts else own.logpdf(value)
        assert float(family.log_density(one, value[None])) == pytest.approx(density, rel=1e-8, abs=1e-9)
        assert float(family.cdf(one, value[None])) == pytest.approx(own.cdf(value), rel=1e-9)
        assert float(family.mean(one)) == pytest.approx(own.mean(), rel=1e-8)
        assert float(family.variance(one)) == pytest.approx(own.var(), rel=1e-7)
        for probability in PROBABILITIES[1:-1]:
            assert float(family.icdf(one, probability)) == pytest.approx(own.ppf(probability), rel=1e-7)


@pytest.mark.parametrize("name", ["zero_inflated_negative_binomial", "zero_inflated_lognormal"])
def test_zeros_are_added_to_the_family_of_scipy(name: str) -> None:
    family, given = LIKELIHOODS[name](), outputs(name, 30)
    for row in range(30):
        own, one, zero = theirs(name, given[row].numpy()), given[row : row + 1], float(given[row, 0])
        at_zero = own.pmf(0) if family.counts else 0.0
        none = torch.zeros(1, dtype=torch.float64)
        assert float(family.log_density(one, none)) == pytest.approx(math.log(zero + (1 - zero) * at_zero), rel=1e-9)
        assert float(family.cdf(one, none)) == pytest.approx(zero + (1 - zero) * at_zero, rel=1e-9)
        value = torch.tensor([float(row + 1)], dtype=torch.float64)
        density = own.logpmf(row + 1) if family.counts else own.logpdf(row + 1)
        assert float(family.log_density(one, value)) == pytest.approx(math.log1p(-zero) + density, rel=1e-9)
        assert float(family.cdf(one, value)) == pytest.approx(zero + (1 - zero) * own.cdf(row + 1), rel=1e-9)
        assert float(family.mean(one)) == pytest.approx((1 - zero) * own.mean(), rel=1e-9)
        square = (1 - zero) * (own.var() + own.mean() ** 2)
        assert float(family.variance(one)) == pytest.approx(square - ((1 - zero) * own.mean()) ** 2, rel=1e-7)


@pytest.mark.parametrize("name", ["truncated_student_t", "normal_mixture", "quantiles"])
def test_the_density_integrates_to_the_distribution_function_and_the_moments(name: str) -> None:
    """Of families that scipy has not; heavy tails are integrated to where they end."""
    family, given = LIKELIHOODS[name](), outputs(name, 6, spread=0.7)
    if name == "truncated_student_t":
        given[:, 0] += 4  # a finite fourth moment
    for row in range(6):
        one = given[row : row + 1]
        ends = [float(family.icdf(one, p)) for p in (1e-15, *LEVELS, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1 - 1e-15)]

        def integral(power: int, upto: float, one: Tensor = one, ends: list[float] = ends) -> float:
            def density(y: float) -> float:
                return y**power * float(family.log_density(one, torch.tensor([y], dtype=torch.float64)).exp())

            pieces = [end for end in ends if end < upto] + [upto]
            return sum(integrate.quad(density, a, b, epsabs=1e-12)[0] for a, b in pairwise(pieces))

        middle = float(family.icdf(one, 0.62))
        assert integral(0, middle) == pytest.approx(0.62, rel=1e-6)
        assert integral(0, ends[-1]) == pytest.approx(1, rel=1e-6)
        assert float(family.mean(one)) == pytest.approx(integral(1, ends[-1]), rel=1e-4)
        square = float(family.variance(one) + family.mean(one) ** 2)
        assert square == pytest.approx(integral(2, ends[-1]), rel=1e-2 if name == "truncated_student_t" else 1e-4)


@pytest.mark.parametrize("df", [2.001, 3.0, 12.0, 500.0])
def test_the_logarithm_of_students_distribution_function_is_that_of_scipy_and_its_gradients_are_its_differences(
    df: float,
) -> None:
    at = torch.tensor([-1e5, -40.0, -6.0, -1.0, -0.1, 0.0, 1e-9, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    freedom = torch.full_like(at, df, requires_grad=True)
    found = log_student_cdf(freedom, at)
    expected = stats.t(df).logcdf(at.detach().numpy())
    usable = np.isfinite(expected)
    np.testing.assert_allclose(found.detach().numpy()[usable], expected[usable], rtol=1e-7, atol=1e-8)
    slope, by_freedom = torch.autograd.grad(found.sum(), (at, freedom))
    ratio = np.exp(stats.t(df).logpdf(at.detach().numpy()) - found.detach().numpy())
    np.testing.assert_allclose(slope.numpy(), ratio, rtol=1e-5)
    without = log_student_cdf(freedom.detach(), at.detach())  # by scipy, as far as that has 8 digits
    np.testing.assert_allclose(without.numpy(), found.detach().numpy(), rtol=1e-8, atol=1e-8)
    step = 1e-4 * df
    differences = log_student_cdf(freedom.detach() + step, at) - log_student_cdf(freedom.detach() - step, at)
    np.testing.assert_allclose(by_freedom.numpy(), differences.detach().numpy() / (2 * step), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_quantile_is_the_inverse_of_the_distribution_function(name: str) -> None:
    family, given = LIKELIHOODS[name](), outputs(name, 60, spread=1.5)
    previous = torch.full((60,), -math.inf, dtype=torch.float64)
    for probability in PROBABILITIES:
        found = family.icdf(given, probability)
        assert found.isfinite().all()
        assert (found >= previous).all()
        previous = found
        reached = family.cdf(given, found)
        if family.counts:
            assert torch.equal(found, found.floor())
            assert (reached >= probability).all()
            assert ((family.cdf(given, found - 1) < probability) | (found == 0)).all()
        else:
            inside = (found > 0) | torch.tensor(not family.atom)
            assert (reached >= probability * (1 - 1e-6)).all()
            torch.testing.assert_close(
                reached[inside], torch.full_like(reached[inside], probability), rtol=1e-6, atol=1e-13
            )
        if family.least is not None:
            assert (found >= family.least).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_extreme_parameters_give_numbers_and_gradients(name: str) -> None:
    family = LIKELIHOODS[name]()
    loc = torch.tensor([-1e4, -300.0, -8.0, 0.0, 1e-6, 30.0, 1e6])
    scale = torch.tensor([1e-4, 1e-2, 1.0, 50.0, 1e3])
    grid = torch.cartesian_prod(loc, scale)
    for raw in (-12.0, 0.0, 12.0):
        others = family.shapes([torch.full((len(grid),), raw) for _ in family.names[:-2]])
        given = torch.stack([*others, *grid.unbind(-1)], -1).requires_grad_()
        for value in (0.0, 1.0, 3.0, 1e4):
            if family.positive and value == 0:
                continue
            targets = torch.tensor([value, 1.0])[None, :, None].expand(1, 2, len(grid))
            loss = family.nll(given[None], targets)
            (gradient,) = torch.autograd.grad(loss.sum(), given)
            assert loss.isfinite().all()
            assert gradient.isfinite().all()
        with torch.no_grad():
            assert family.mean(given).isfinite().all()
            if raw > -12 or "df" not in family.names:  # two degrees of freedom have no variance
                assert family.variance(given).isfinite().all()
            assert (family.variance(given) >= 0).all()
            assert not family.cdf(given, torch.full((len(grid),), 2.0)).isnan().any()
            for probability in (0.001, 0.5, 0.999):
                assert family.icdf(given, probability).isfinite().all()


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_what_cannot_be_is_impossible_and_leaves_the_gradient_of_other_steps(name: str) -> None:
    family, given = LIKELIHOODS[name](), outputs(name, 1, 3)[0].requires_grad_()
    density = family.log_density(given, torch.tensor([-1.0, 2.0, 0.5 if family.counts else -0.1], dtype=torch.float64))
    assert density[0] == density[2] == -math.inf
    targets = torch.tensor([[[-1.0, 2.0, 1e30], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(family.nll(given[None], targets).sum(), given)
    assert gradient.isfinite().all()
    assert not gradient[[0, 2]].any()
    assert gradient[1].any()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_have_the_distribution(name: str) -> None:
    family, given = LIKELIHOODS[name](), outputs(name, 2, 2)
    samples = family.sample(given, 4000, torch.Generator().manual_seed(1))
    assert samples.shape == (4000, 2, 2)
    below = torch.stack([family.cdf(given, each - 1 if family.counts else each) for each in samples])
    upto = torch.stack([family.cdf(given, each) for each in samples])
    if family.atom:
        below = torch.where(samples == 0, 0, upto)
    if not family.continuous:  # a point within the jump
        below = below + torch.rand(below.shape, generator=torch.Generator().manual_seed(2)) * (upto - below)
    worst = min(stats.kstest(column.numpy(), "uniform").pvalue for column in below.flatten(1).T)
    assert worst > 1e-3
    again = family.sample(given, 4000, torch.Generator().manual_seed(1))
    assert torch.equal(again, samples)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_densities_change_with_the_unit_by_its_logarithm(name: str) -> None:
    family, given, tenfold = LIKELIHOODS[name](), outputs(name, 30), outputs(name, 30, unit=10.0)
    values = 0.1 + torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 8
    density = family.log_density(tenfold, 10 * values)
    torch.testing.assert_close(density, family.log_density(given, values) - math.log(10), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(family.icdf(tenfold, 0.2), 10 * family.icdf(given, 0.2), rtol=1e-8, atol=1e-12)
    targets = torch.stack([values, torch.ones_like(values)])[None]
    expected = family.nll(given[None], targets) + 30 * math.log(10)
    scaled = torch.stack([10 * values, torch.ones_like(values)])[None]
    torch.testing.assert_close(family.nll(tenfold[None], scaled), expected, rtol=1e-9, atol=1e-9)


def test_amounts_change_with_the_unit_where_they_are_positive() -> None:
    family, given = LIKELIHOODS["zero_inflated_lognormal"](), outputs("zero_inflated_lognormal", 20)
    tenfold, values = outputs("zero_inflated_lognormal", 20, unit=10.0), torch.arange(20.0, dtype=torch.float64)
    change = family.log_density(given, values) - family.log_density(tenfold, 10 * values)
    assert change[0] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(change[1:].numpy(), math.log(10), rtol=1e-9)


def test_far_above_zero_the_truncated_are_their_parents() -> None:
    for family, parent in ((TruncatedNormal(), Normal()), (TruncatedStudentT(), StudentT())):
        given = torch.tensor([[30.0, 1e4, 2.0], [9.0, 3e3, 1.0]], dtype=torch.float64)[:, 3 - family.size :]
        values = given[:, -2] + torch.tensor([1.0, -2.0], dtype=torch.float64)
        torch.testing.assert_close(
            family.log_density(given, values), parent.log_density(given, values), rtol=1e-9, atol=0
        )
        torch.testing.assert_close(family.icdf(given, 0.02), parent.icdf(given, 0.02), rtol=1e-9, atol=0)
        torch.testing.assert_close(family.variance(given), parent.variance(given), rtol=1e-6, atol=0)


@pytest.mark.parametrize("below", [20.0, 49.9, 50.1, 400.0])
def test_far_below_zero_a_truncated_gaussian_is_nearly_exponential(below: float) -> None:
    given = torch.tensor([[-3 * below, 3.0]], dtype=torch.float64)
    family = TruncatedNormal()
    own = [float(family.mean(given)), float(family.variance(given))]

    def density(y: float, power: int) -> float:
        return float(y**power * math.exp(-0.5 * (y / 3) ** 2 - below * y / 3))

    whole, first, second = (integrate.quad(density, 0, 300 / below, args=(k,), epsabs=0)[0] for k in range(3))
    assert own == pytest.approx([first / whole, second / whole - (first / whole) ** 2], rel=1e-5)


def test_quantiles_never_cross_and_the_loss_has_the_gradient_of_the_pinball_loss() -> None:
    family = Quantiles()
    raw = 8 * torch.randn(200, 5, family.size, generator=torch.Generator().manual_seed(0))
    given = torch.stack(family.standard(raw), -1)
    found = family.quantiles(given.double())
    assert (found.diff(dim=-1) > 0).all()
    for place, level in enumerate(LEVELS):
        torch.testing.assert_close(family.icdf(given, level), found[..., place], rtol=1e-6, atol=1e-6)
    standard = torch.stack(family.standard(torch.zeros(family.size, dtype=torch.float64)), -1)
    np.testing.assert_allclose(family.quantiles(standard), stats.norm.ppf(LEVELS), atol=1e-9)
    location = torch.linspace(-3, 3, 50, dtype=torch.float64)
    moved = standard.repeat(50, 1)
    moved[:, -2] = location
    moved.requires_grad_()
    targets = torch.stack([torch.full_like(location, 0.2), torch.ones_like(location)])[None]
    (gradient,) = torch.autograd.grad(family.nll(moved[None], targets).sum(), moved)
    # d/dq rho_p(y - q) = 1{y < q} - p, all quantiles moving with the location
    q = location[:, None] + torch.from_numpy(stats.norm.ppf(LEVELS))
    mean_loss = np.mean(stats.norm.pdf(stats.norm.ppf(LEVELS)))
    expected = ((q > 0.2).double() - torch.tensor(LEVELS, dtype=torch.float64)).mean(-1) / mean_loss
    np.testing.assert_allclose(gradient[:, -2], expected, atol=1e-9)


def test_the_true_quantiles_minimise_the_loss() -> None:
    """Of exponential samples, from a Gaussian start: after 500 steps of Adam the quantiles are the empirical ones."""
    family = Quantiles()
    samples = -2 * torch.log(torch.rand(4000, generator=torch.Generator().manual_seed(3)))
    raw = torch.zeros(family.size, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    targets = torch.stack([samples, torch.ones_like(samples)])[None]
    for _ in range(500):
        optimizer.zero_grad()
        given = torch.stack(family.standard(raw), -1).expand(1, 4000, -1)
        (family.nll(given, targets).sum() / 4000).backward()
        optimizer.step()
    found = family.quantiles(torch.stack(family.standard(raw), -1)).detach()
    np.testing.assert_allclose(found, np.quantile(samples.numpy(), LEVELS), atol=0.12)


def test_a_mixture_of_gaussians_has_its_location_and_scale_for_mean_and_deviation() -> None:
    given = outputs("normal_mixture", 5, spread=2.0)
    samples = NormalMixture().sample(given, 40_000, torch.Generator().manual_seed(0))
    error = given[:, -1] / 200
    assert ((samples.mean(0) - given[:, -2]).abs() < 5 * error).all()
    torch.testing.assert_close(samples.std(0), given[:, -1], rtol=0.05, atol=0)


@pytest.mark.parametrize("name", WITH_JUMPS)
@pytest.mark.parametrize("unit", [0.05, 1.0, 200.0])
def test_quantiles_over_draws_are_those_of_a_search_over_all_values(name: str, unit: float) -> None:
    family, given = LIKELIHOODS[name](), outputs(name, 7, 3, 4, unit=unit, spread=1.2)
    mixture = StepMixture(family, given)
    probabilities = (0.001, 0.05, 0.4, 0.5, 0.9, 0.999)
    found = mixture.quantiles(probabilities)
    assert (found.diff(dim=0) >= 0).all()
    assert (found >= 0).all()
    for probability, quantile in zip(probabilities, found, strict=True):
        reached = mixture.cdf(quantile)
        if family.counts:
            assert torch.equal(quantile, quantile.floor())
            assert (reached >= probability).all()
            assert ((mixture.cdf(quantile - 1) < probability) | (quantile == 0)).all()
        else:
            torch.testing.assert_close(
                reached[quantile > 0], torch.full_like(reached[quantile > 0], probability), rtol=1e-5, atol=0
            )
            assert (reached[quantile == 0] >= probability).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_quantiles_over_draws_reach_their_probability(name: str) -> None:
    mixture = StepMixture(LIKELIHOODS[name](), outputs(name, 6, 3, 4, spread=1.2))
    for probability, quantile in zip((0.001, 0.3, 0.95), mixture.quantiles((0.001, 0.3, 0.95)), strict=True):
        torch.testing.assert_close(mixture.cdf(quantile), torch.full_like(quantile, probability), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_beyond_whole_floats_have_a_quantile(name: str) -> None:
    """Above 2^53 halving an interval of counts never ends in one: what is that large is 2^52."""
    *others, _, _ = outputs(name, 1, spread=0.0)[0]
    given = torch.tensor([[*others, 1e16, 1e16], [*others, 1e18, 1e18], [*others, 4.0, 3.0]], dtype=torch.float64)
    found = LIKELIHOODS[name]().icdf(given, 0.999)
    assert found[:2].tolist() == [2.0**52] * 2
    assert 4 < float(found[2]) < 40


def test_gaps_of_quantiles_are_kept_far_from_zero_in_float32() -> None:
    """A gap of a thousandth of the scale is less than float32 can tell at 20,000 scales, where no density is infinite."""
    family = Quantiles()
    near = torch.stack(family.standard(torch.full((1, family.size), -12.0)), -1)
    far = near.clone()
    near[:, -2], far[:, -2] = 0.0, 2e4 * far[0, -1]
    z = torch.tensor([-0.011, -0.0042, 0.0, 0.0037, 1.0]) * near[0, -1]
    exact = family.log_density(near.double().expand(5, -1), z.double())
    own = family.log_density(far.expand(5, -1), far[0, -2].double() + z.double())
    torch.testing.assert_close(own.double(), exact, rtol=1e-5, atol=1e-5)


def mixed(*pairs: tuple[float, float]) -> StepMixture:
    return StepMixture(Normal(), torch.tensor(pairs, dtype=torch.float64)[:, None, None])


def test_a_quantile_between_draws_that_lie_apart_is_on_the_plateau_there() -> None:
    """Newton's steps grow where the density is nearly 0; draws as these stopped it at .677 in place of .5."""
    generator = torch.Generator().manual_seed(0)
    for spread in (3.0, 6.0):
        raw = spread * torch.randn(8, 300, 3, 2, generator=generator, dtype=torch.float64)
        given = torch.stack([3 * raw[..., 0], torch.nn.functional.softplus(raw[..., 1]) + 1e-4], -1)
        mixture = StepMixture(Normal(), given)
        levels = (0.02, 0.3, 0.4999, 0.5, 0.5001, 0.7, 0.95)
        found = mixture.quantiles(levels)
        assert (found.diff(dim=0) >= 0).all()
        for level, quantile in zip(levels, found, strict=True):
            width = 1e-8 * (1 + quantile.abs())
            assert (mixture.cdf(quantile - width) <= level + 1e-6).all()
            assert (mixture.cdf(quantile + width) >= level - 1e-6).all()
    (middle,) = mixed((-8.0, 0.5), (-6.0, 0.4), (7.0, 0.5), (9.0, 0.5)).quantiles((0.5,))
    assert -6 < float(middle) < 7


def test_quantiles_come_in_the_order_that_they_were_asked_for() -> None:
    mixture = mixed((0.0, 1.0), (1.0, 2.0))
    torch.testing.assert_close(mixture.quantiles((0.9, 0.1)), mixture.quantiles((0.1, 0.9)).flip(0))
