"""What the theory of each method promises on a linear regression, whose posterior N(m, A^-1) is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from method_problems import INPUTS, NOISE, ROWS, Trial, copies_trial, regression, section
from torch import nn

from proxscore.inference import Gaussian
from proxscore.posterior import Samples, SWAGPosterior

PRIOR = 4.0  # precision
COPIES = 50
POINTS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd", "lr": 0.05, "weight_decay": PRIOR / ROWS},
    "adamw": {"kind": "adamw", "lr": 0.05, "weight_decay": 0.0},
}
MEAN_FIELDS: dict[str, dict[str, Any]] = {
    "elbo": {"kind": "elbo", "prior": {"scale": PRIOR**-0.5}, "lr": 0.02, "initial_scale": 0.1},
    "ivon": {"kind": "ivon", "weight_decay": PRIOR / ROWS, "lr": 0.1, "hess_init": 1.0, "beta2": 0.995},
}


@pytest.mark.parametrize("name", POINTS)
def test_a_point_estimate_is_the_mode_from_mini_batches_too(name: str) -> None:
    """SGD's weight decay is a prior. AdamW's is none (it is decoupled from the gradient's scale): without it, the MLE."""
    mode, covariance = regression().exact(PRIOR if name == "sgd" else 0.0)
    for batch, tolerance in ((ROWS, 0.02), (40, 0.1)):
        weight = copies_trial(section(**POINTS[name]), 1, 400, batch).go().posterior().mean["weight"]
        assert ((weight - mode).abs() / covariance.diagonal().sqrt()).max() < tolerance


@pytest.mark.parametrize("name", MEAN_FIELDS)
def test_a_mean_field_has_the_posteriors_mean_and_the_diagonal_of_its_precision(name: str) -> None:
    """The optimum of the ELBO. Each copy's estimate is noisy; their average is not, by a factor of sqrt(COPIES)."""
    mean, covariance = regression().exact(PRIOR)
    trial = copies_trial(section(**MEAN_FIELDS[name]), COPIES, 1200, 60).go()
    posterior = trial.posterior()
    deviation = (posterior.mean["weight"] - mean) / covariance.diagonal().sqrt()
    assert deviation.abs().max() < 0.5  # of a copy, in posterior standard deviations
    assert deviation.mean(0).abs().max() < 0.1
    ratio = posterior.precision["weight"] / torch.linalg.inv(covariance).diagonal()
    assert ratio.mean(0).sub(1).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["sgld", "sghmc"])
def test_a_samplers_draws_have_the_posteriors_mean_and_covariance(kind: str) -> None:
    """At a constant step: the bias is lr h / 2 of the variance along a direction of curvature h, at most 4 % here.

    1,000 chains times 5 samples, with four standard errors sqrt(2 / 5,000) of a variance (of a covariance: less, in units of
    the two standard deviations) beside the bias.
    """
    mean, covariance = regression().exact(PRIOR)
    settings = {"schedule": "constant", "lr": 0.05, "burn_in": 300, "samples": 5, "prior": {"scale": PRIOR**-0.5}}
    posterior = copies_trial(section(kind=kind, **settings), 1000, 550).go().posterior()
    draws = torch.cat([posterior.draw(index)["weight"] for index in posterior.indices(100)])
    assert len(draws) == 5 * 1000
    assert ((draws.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max() < 0.05
    scale = covariance.diagonal().sqrt()
    assert ((draws.T.cov() - covariance) / scale / scale[:, None]).abs().max() < 0.12


def test_the_mean_of_swag_is_the_mode() -> None:
    mode, covariance = regression().exact(PRIOR)
    settings = {"lr": 0.1, "swag_lr": 0.05, "collect_every": 1, "start": 0.5, "weight_decay": PRIOR / ROWS}
    posterior = copies_trial(section(kind="swag", **settings), 1, 400, 40).go().posterior()
    assert ((posterior.mean["weight"] - mode).abs() / covariance.diagonal().sqrt()).max() < 0.1
    draws = torch.cat([posterior.draw(index)["weight"] for index in range(2000)])
    assert ((draws.mean(0) - posterior.mean["weight"]) / draws.std(0)).abs().max() < 0.1


def test_swag_has_the_moments_of_the_weights_that_it_collected() -> None:
    """Every second step of the last half; the deviations are those of the last four, each from the mean at its time."""
    settings = {"lr": 0.1, "swag_lr": 0.1, "collect_every": 2, "start": 0.5, "rank": 4}
    trial = copies_trial(section(kind="swag", **settings), 2, 40)
    path = []
    for _ in range(40):
        trial.go(1)
        path.append(trial.module.weight.detach().clone())
    collected = torch.stack(path[21::2])
    posterior = trial.posterior()
    assert isinstance(posterior, SWAGPosterior)
    torch.testing.assert_close(posterior.mean["weight"], collected.mean(0))
    torch.testing.assert_close(2 / posterior.precision["weight"], collected.var(0, correction=0), rtol=1e-3, atol=1e-9)
    expected = [collected[k] - collected[: k + 1].mean(0) for k in range(6, 10)]
    found = sorted(deviation["weight"][0, 0].item() for deviation in posterior.deviations)
    assert found == pytest.approx(sorted(column[0, 0].item() for column in expected), rel=1e-3, abs=1e-7)


def test_an_ensembles_mean_is_the_mode_wherever_its_members_start() -> None:
    """The log-posterior is concave: members agree, and their spread says nothing of the posterior's."""
    mode, covariance = regression().exact(PRIOR)
    members = []
    for seed in range(3):
        trial = copies_trial(section(**POINTS["sgd"]), 1, 400)
        nn.init.normal_(trial.module.weight, generator=torch.Generator().manual_seed(seed))
        members.append(trial.go().posterior())
    ensemble = Samples(members)
    draws = torch.cat([ensemble.draw(index)["weight"] for index in ensemble.indices(10)])
    assert len(draws) == 3
    assert ((draws.mean(0) - mode) / covariance.diagonal().sqrt()).abs().max() < 0.02


def test_mc_dropouts_draws_average_to_the_weights_that_were_trained() -> None:
    """A mask multiplies each input by 0 or 1 / (1 - rate): of a linear model, the mean output is that without a mask."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Dropout(0.3), nn.Linear(INPUTS, 1))
    problem = regression()
    rows = problem.x, problem.y[:, None]
    settings = section(kind="mc_dropout", of={"kind": "sgd", "lr": 0.05})
    posterior = Trial(settings, module, Gaussian(NOISE), rows, 100, ROWS).go().posterior()
    module.eval()
    outputs = []
    with torch.no_grad():
        for index in range(1000):
            with posterior.use(module, index):
                outputs.append(module(problem.x))
    plain, drawn = module(problem.x), torch.stack(outputs)
    error = (drawn.mean(0) - plain) / (drawn.std(0) / 1000**0.5)
    assert error.square().mean() < 3  # in standard errors; the outputs share three masks
    variance = 0.3 / 0.7 * problem.x.square() @ module[1].weight.detach().T.square()  # of independent masks
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.2, atol=1e-3)


@pytest.mark.parametrize("structure", ["full", "diag"])
@pytest.mark.parametrize("subset", ["last_layer", "all"])
def test_laplace_has_the_posteriors_covariance_or_the_diagonal_of_its_precision(structure: str, subset: str) -> None:
    """Exact: the log-posterior is quadratic. The mode is that of training, whose weight decay is the same prior."""
    problem = regression()
    mean, covariance = problem.exact(PRIOR)
    settings = section(kind="laplace", of=POINTS["sgd"], subset=subset, structure=structure, prior_precision=PRIOR)
    module = nn.Sequential(nn.Linear(INPUTS, 1, bias=False))
    trial = Trial(settings, module, Gaussian(NOISE), (problem.x, problem.y[:, None]), 300, ROWS).go()
    posterior = trial.posterior()
    torch.testing.assert_close(posterior.mean["0.weight"][0], mean, rtol=0, atol=2e-3)
    if structure == "diag":
        expected = torch.linalg.inv(covariance).diagonal()
        torch.testing.assert_close(posterior.precision["0.weight"][0], expected, rtol=1e-3, atol=0)
    else:
        factor = posterior.joint[0].state["factor"]
        torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-3, atol=1e-5)
        draws = torch.cat([posterior.draw(index)["0.weight"] for index in range(2000)])
        torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.25, atol=0)  # 5 standard errors
