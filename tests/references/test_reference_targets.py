"""The NUTS references: of these very densities and data, converged, and right where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_data import NAMES, problem, stored
from reference_targets import load
from torch import Tensor


def points(name: str) -> list[Tensor]:
    return [torch.tensor(point, dtype=torch.float64) for point in stored(name)["log_joint"]["points"]]


@pytest.mark.parametrize("name", NAMES)
def test_data_and_prior_are_those_of_the_run(name: str) -> None:
    reference, target = stored(name), load(name)
    assert problem(name).checksum() == reference["data_sha256"]
    assert (reference["rows"], reference["dimension"]) == (target.rows, target.dimension)


@pytest.mark.parametrize("name", NAMES)
def test_the_log_joint_is_the_density_that_nuts_sampled(name: str) -> None:
    target = load(name)
    values = torch.stack([target.log_joint(point) for point in points(name)])
    expected = torch.tensor(stored(name)["log_joint"]["values"], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_mini_batches_add_up_to_the_log_joint(name: str) -> None:
    """Also through the module, whose gradient is the score."""
    target, theta = load(name), points(name)[0].requires_grad_()
    batches = torch.randperm(target.rows, generator=torch.Generator().manual_seed(0)).split(-(-target.rows // 4))
    assert len(batches) == 4
    total = target.log_prior(theta) - torch.stack([target.nll(theta, rows).sum() for rows in batches]).sum()
    torch.testing.assert_close(total, target.log_joint(theta), rtol=1e-12, atol=0)
    (score,) = torch.autograd.grad(total, theta)

    model = target.module(theta)
    for rows in batches:
        target.row_nll(model(target.inputs[rows]), rows).sum().backward()
    likelihood_score = -target.join((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    prior_score = (target.prior_mean - theta.detach()) / target.prior_scale**2
    torch.testing.assert_close(likelihood_score + prior_score, score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target.join(model.named_parameters()), theta, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizers_prior_is_the_targets(name: str) -> None:
    target = load(name)
    named = dict(target.module().named_parameters())
    prior = target.prior()
    assigned = prior.assign(named.items())
    assert all(each.sampled for each in assigned.values())
    precision = target.join((name, torch.full_like(p, assigned[name].precision)) for name, p in named.items())
    mean = target.join((name, prior.mean.get(name, torch.zeros_like(p))) for name, p in named.items())
    torch.testing.assert_close(precision.rsqrt(), target.prior_scale)
    torch.testing.assert_close(mean, target.prior_mean)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_batched_by_vmap_and_have_the_references_shape(name: str) -> None:
    target, draws = load(name), torch.stack(points(name))
    predicted = torch.vmap(lambda theta: target.predict(theta, target.test_inputs))(draws)
    assert predicted.shape == (3, len(stored(name)["predictive"]["mean"]))
    torch.testing.assert_close(predicted[1], target.predict(draws[1], target.test_inputs))


@pytest.mark.parametrize("name", NAMES)
def test_the_runs_converged(name: str) -> None:
    """Split R-hat below 1.01, also of squared deviations, and the standard errors that tests of posteriors rely on."""
    reference = stored(name)
    summaries = [reference[key] for key in ("parameters", "predictive") if key in reference]
    assert len(summaries) == (1 if name == "network" else 2)
    assert reference["divergences"] == 0
    assert reference["log_joint_r_hat"] < 1.01
    assert reference["log_joint_ess"] > 1000
    for each in summaries:
        assert max(each["r_hat"]) < 1.01
        assert min(each["ess"]) > 4000
        sd = np.array(each["sd"])
        assert max(each["mean_mcse"] / sd) < 0.02
        assert max(each["sd_mcse"] / sd) < 0.05


def test_the_covariance_goes_with_the_standard_deviations() -> None:
    for name in ("logistic", "eight_schools"):
        parameters = stored(name)["parameters"]
        covariance = np.array(parameters["covariance"])
        np.testing.assert_allclose(covariance, covariance.T)
        np.testing.assert_allclose(np.sqrt(covariance.diagonal()), parameters["sd"], rtol=1e-6)
        assert np.linalg.eigvalsh(covariance).min() > 0


def test_the_eight_schools_agree_with_quadrature() -> None:
    """Given tau, the effects are Gaussian: only log tau is integrated numerically. Tolerance: 5 standard errors."""
    task, parameters = problem("eight_schools"), stored("eight_schools")["parameters"]
    mu_variance, (y, s) = 25.0, (task.targets, task.noise)
    assert s is not None
    log_tau = np.linspace(-5.0, 6.0, 2201)
    weights, mu_means, mu_squares = [], [], []
    for value in log_tau:
        variance = s**2 + math.exp(2 * value)  # of y_j given mu
        precision = (1 / variance).sum() + 1 / mu_variance
        mean = (y / variance).sum() / precision
        log_evidence = -0.5 * (np.log(variance).sum() + math.log(precision) + (y**2 / variance).sum())
        log_evidence += 0.5 * mean**2 * precision
        weights.append(log_evidence - 0.5 * (value - math.log(5.0)) ** 2)
        mu_means.append(mean)
        mu_squares.append(mean**2 + 1 / precision)
    w = np.exp(np.array(weights) - max(weights))
    w /= w.sum()
    mu, tau = w @ mu_means, w @ log_tau
    exact = [(mu, math.sqrt(w @ mu_squares - mu**2)), (tau, math.sqrt(w @ log_tau**2 - tau**2))]
    for index, (mean, sd) in enumerate(exact):
        assert abs(parameters["mean"][index] - mean) < 5 * parameters["mean_mcse"][index]
        assert abs(parameters["sd"][index] - sd) < 5 * parameters["sd_mcse"][index]
