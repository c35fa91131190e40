"""Distributions per step against scipy, and their mixtures over draws against sampling-free sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from proxscore.forecasting.distributions import Mixture, Normal, StepDistribution, StudentT, seeded
from proxscore.forecasting.likelihoods.names import LIKELIHOODS


def parameters(name: str, *shape: int) -> Tensor:
    loc, scale = 20 * torch.randn(*shape, dtype=torch.float64), torch.rand(*shape, dtype=torch.float64) + 0.2
    df = 2.5 + 10 * torch.rand(*shape, dtype=torch.float64)
    return torch.stack([df, loc, scale] if name == "student_t" else [loc, scale], -1)


def frozen(name: str, outputs: Tensor) -> Any:
    return (stats.t if name == "student_t" else stats.norm)(*(part.numpy() for part in outputs.unbind(-1)))


@pytest.fixture(params=["normal", "student_t"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_density_mean_and_variance_are_those_of_scipy(name: str) -> None:
    likelihood, outputs = LIKELIHOODS[name](), parameters(name, 5, 7)
    values = 20 * torch.randn(5, 7, dtype=torch.float64)
    expected = frozen(name, outputs)
    np.testing.assert_allclose(likelihood.log_density(outputs, values), expected.logpdf(values.numpy()), rtol=1e-10)
    np.testing.assert_allclose(likelihood.mean(outputs), expected.mean(), rtol=1e-10)
    np.testing.assert_allclose(likelihood.variance(outputs), expected.var(), rtol=1e-10)


def test_the_nll_is_the_sum_over_observed_steps(name: str) -> None:
    likelihood, outputs = LIKELIHOODS[name](), parameters(name, 4, 6).requires_grad_()
    values, observed = torch.randn(4, 6, dtype=torch.float64), torch.rand(4, 6) < 0.6
    observed[0] = False
    targets = torch.stack([values, observed.double()], 1)
    nll = likelihood.nll(outputs, targets)
    density = frozen(name, outputs.detach()).logpdf(values.numpy())
    np.testing.assert_allclose(nll.detach(), -(density * observed.numpy()).sum(1), rtol=1e-10)
    assert nll[0] == 0
    other = torch.where(observed, values, torch.tensor(1e30, dtype=torch.float64))
    torch.testing.assert_close(likelihood.nll(outputs, torch.stack([other, observed.double()], 1)), nll)
    (gradient,) = torch.autograd.grad(nll.sum(), outputs)
    assert gradient.isfinite().all()
    assert not gradient[~observed].any()


def test_samples_have_the_distribution_and_follow_from_the_generator(name: str) -> None:
    likelihood, outputs = LIKELIHOODS[name](), parameters(name, 2, 3)
    samples = likelihood.sample(outputs, 4000, torch.Generator().manual_seed(1))
    assert samples.shape == (4000, 2, 3)
    expected = frozen(name, outputs)
    uniform = expected.cdf(samples.numpy())
    worst = min(stats.kstest(uniform[:, i, j], "uniform").pvalue for i in range(2) for j in range(3))
    assert worst > 1e-3
    state = torch.get_rng_state()
    again = likelihood.sample(outputs, 4000, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again, samples)
    assert not torch.equal(likelihood.sample(outputs, 4000, torch.Generator().manual_seed(2)), samples)


def test_a_generator_gives_new_numbers_each_time_and_none_takes_the_stream_of_torch() -> None:
    generator, device = torch.Generator().manual_seed(0), torch.device("cpu")
    with seeded(generator, device):
        first = torch.rand(3)
    with seeded(generator, device):
        assert not torch.equal(torch.rand(3), first)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(None, device):
        assert torch.equal(torch.rand(3), expected)


def test_half_precision_outputs_are_evaluated_in_single_precision(name: str) -> None:
    likelihood, outputs = LIKELIHOODS[name](), parameters(name, 3, 4).bfloat16()
    values = torch.randn(3, 4)
    assert likelihood.log_density(outputs, values).dtype == torch.float32
    torch.testing.assert_close(likelihood.log_density(outputs, values), likelihood.log_density(outputs.float(), values))


def test_the_mixture_over_draws_is_the_law_of_total_variance_and_the_mean_density(name: str) -> None:
    likelihood, outputs = LIKELIHOODS[name](), parameters(name, 6, 3, 5)  # six draws
    outputs[..., -2] += 1e4  # a large mean with a small spread
    values = 1e4 + 20 * torch.randn(3, 5, dtype=torch.float64)
    mixture = Mixture(likelihood, values)
    for draw in outputs:
        mixture.add(draw)
    component = frozen(name, outputs)
    density = logsumexp(component.logpdf(values.numpy()), axis=0) - np.log(6)
    np.testing.assert_allclose(mixture.log_density, density, rtol=1e-10)
    np.testing.assert_allclose(mixture.mean, component.mean().mean(0), rtol=1e-12)
    np.testing.assert_allclose(mixture.aleatoric, component.var().mean(0), rtol=1e-10)
    np.testing.assert_allclose(mixture.epistemic, component.mean().var(0), rtol=1e-8)
    samples = likelihood.sample(outputs, 20000, torch.Generator().manual_seed(3)).flatten(0, 1)
    total = (mixture.aleatoric + mixture.epistemic).numpy()
    np.testing.assert_allclose(samples.var(0), total, rtol=0.1)


def test_draws_that_are_impossible_at_a_value_leave_the_density_of_the_others() -> None:
    values = torch.tensor([[1e20]])
    mixture = Mixture(Normal(), values)
    mixture.add(torch.tensor([[[0.0, 1e-10]]]))  # log-density -inf in float32
    mixture.add(torch.tensor([[[1e20, 1.0]]]))
    expected = stats.norm.logpdf(0) - np.log(2)
    assert mixture.log_density.item() == pytest.approx(expected)


@pytest.mark.parametrize("likelihood", [StudentT(), Normal()])
def test_shapes_that_do_not_fit_are_refused(likelihood: StepDistribution) -> None:
    with pytest.raises(ValueError, match=rf"expected \(B, H, {likelihood.size}\) and \(B, 2, H\)"):
        likelihood.nll(torch.ones(3, 4, likelihood.size), torch.ones(3, 4))
    with pytest.raises(ValueError, match="do not fit"):
        likelihood.nll(torch.ones(3, 4, 5), torch.ones(3, 2, 4))
