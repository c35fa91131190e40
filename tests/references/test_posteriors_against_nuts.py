"""Mini-batched proximal score matching against long NUTS runs: logistic regression, eight schools, a neural network.

Of a target that is not Gaussian the fixed point of the iteration is E_q s = 0 and Lambda = E_q[-d^2 log p] (its diagonal
for the mean field): the Gaussian of least KL(q || p), not the one with p's moments. What differs by that is stated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from reference_data import stored
from reference_targets import Target, load
from torch import Tensor

from proxscore.inference import ForwardKL, ProximalScore, Schedule
from proxscore.inference.families import Family, FullCovariance, MeanField

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def fit(
    target: Target,
    steps: int,
    batch: int,
    family: Family,
    kappa: float,
    start: Tensor | None = None,
    kappa_mean: float = 2.0,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) after mini-batches of ``batch`` rows; cosine schedules."""
    model, cosine = target.module(start), Schedule("cosine", length=steps)
    optimizer = ProximalScore(
        model.named_parameters(),
        target.rows,
        prior=target.prior(),
        family=family,
        penalty=ForwardKL(kappa, kappa_mean, cosine, cosine),
        metric="posterior",
        **({"initial_precision": 0.1, "paired": True} | settings),
    )
    generator = torch.Generator().manual_seed(1)
    done = 0
    while done < steps:
        for rows in torch.randperm(target.rows, generator=generator).split(batch)[: target.rows // batch]:
            for _ in optimizer.draws():
                target.row_nll(model(target.inputs[rows]), rows).mean().backward()
            optimizer.step()
            done += 1
    mean = target.join((name, parameter.detach()) for name, parameter in model.named_parameters())
    for block in optimizer.blocks():
        return mean, block.state["factor"] @ block.state["factor"].mT
    precision = target.join((name, state["precision"]) for name, _, state in optimizer.sampled())
    return mean, (1 / precision).diag()


def reference(name: str, part: str = "parameters") -> dict[str, Tensor]:
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in stored(name)[part].items()}


def worst(values: Tensor) -> float:
    return values.abs().max().item()


def fixed_point_precision(target: Target, mean: Tensor, covariance: Tensor) -> Tensor:
    """diag E_q[-d^2 log p] by 400 draws, (D,): its relative error is below 3 % for the logistic regression."""
    draws = mean + torch.randn(400, len(mean), dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    hessian = torch.func.vmap(torch.func.hessian(lambda theta: -target.log_joint(theta)))(draws)
    return hessian.mean(0).diagonal()


def test_logistic_regression_with_a_full_covariance_has_the_moments_of_nuts() -> None:
    """569 rows in batches of 113. Of NUTS's standard deviation: means within 0.08, standard deviations within 5 %;
    correlations within 0.08; 0.02 to 0.04, 2 to 4 % and 0.04 to 0.05 over seeds. NUTS's own errors (4 MCSE) are 0.015 and
    2.4 %, and are included; the posterior's skewness and the mini-batches make the rest."""
    nuts = reference("logistic")
    mean, covariance = fit(load("logistic"), 1000, 113, FullCovariance(), 20.0)
    deviation = covariance.diagonal().sqrt()
    assert worst((mean - nuts["mean"]) / nuts["sd"]) < 0.08
    assert worst(deviation / nuts["sd"] - 1) < 0.05
    correlation = nuts["covariance"] / torch.outer(nuts["sd"], nuts["sd"])
    assert worst(covariance / torch.outer(deviation, deviation) - correlation) < 0.08


def test_logistic_regression_mean_field_has_the_means_of_nuts_and_the_diagonal_of_the_precision() -> None:
    """Means within 0.1 of NUTS's standard deviations; precisions within 25 % of the diagonal of NUTS's inverse
    covariance and within 15 % of E_q[-d^2 log p], the fixed point (0.04 to 0.08, 11 to 17 % and 10 to 14 % over seeds: the
    largest of 11 mini-batch errors); standard deviations therefore less than half of NUTS's where columns are collinear:
    no more than that is expected of a mean field."""
    target, nuts = load("logistic"), reference("logistic")
    mean, covariance = fit(target, 1500, 113, MeanField(), 50.0)
    precision = 1 / covariance.diagonal()
    assert worst((mean - nuts["mean"]) / nuts["sd"]) < 0.1
    assert worst(precision / torch.linalg.inv(nuts["covariance"]).diagonal() - 1) < 0.25
    assert worst(precision / fixed_point_precision(target, mean, covariance) - 1) < 0.15
    assert (precision.rsqrt() / nuts["sd"]).min() < 0.5


def test_eight_schools_with_a_full_covariance_has_the_moments_of_nuts_but_for_the_scale() -> None:
    """Eight rows in batches of 4, parametrised without centring. Means of mu and of the effects eta within 0.1 of NUTS's
    standard deviations (0.03 to 0.06 over seeds) and standard deviations within 8 % (2 to 5 %). log tau is skewed to the
    left, where the likelihood vanishes: a Gaussian of least KL(q || p) is narrower there, by 10 to 40 % (14 to 26 %), and
    lower by 0.09 +- 0.03 over seeds, 0.2 at most; that is expected."""
    nuts = reference("eight_schools")
    settings: dict[str, Any] = dict(kappa_mean=10.0, initial_precision=0.2)
    mean, covariance = fit(load("eight_schools"), 1000, 4, FullCovariance(), 20.0, **settings)
    ratio, offset = covariance.diagonal().sqrt() / nuts["sd"], (mean - nuts["mean"]) / nuts["sd"]
    assert worst(torch.cat([offset[:1], offset[2:]])) < 0.1
    assert worst(torch.cat([ratio[:1], ratio[2:]]) - 1) < 0.08
    assert -0.2 < offset[1] < 0.05
    assert 0.6 < ratio[1] < 0.9


def pretrained(target: Target) -> Tensor:
    """A maximum of the log joint, from a draw of the prior: where all units are alike there is no way out."""
    theta = (
        target.prior_mean + target.prior_scale * torch.randn(target.dimension, dtype=torch.float64)
    ).requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.02)
    for step in range(1000):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 1000)
        optimizer.zero_grad()
        (-target.log_joint(theta)).backward()
        optimizer.step()
    return theta.detach()


def predictive_errors(target: Target, mean: Tensor, covariance: Tensor) -> dict[str, float]:
    """Predictive function of 1,000 draws against NUTS's. ``mean``: RMS error in NUTS's standard deviations, ``ratio``:
    geometric mean of the standard deviations' ratio, both where there are data; ``correlation``: of the two means over
    all test inputs."""
    nuts, x = reference("network", "predictive"), target.test_inputs[:, 0]
    draws = mean + torch.randn(1000, len(mean), dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    functions = torch.func.vmap(lambda theta: target.predict(theta, target.test_inputs))(draws)
    near = ((x >= -3) & (x <= -1)) | ((x >= 0.5) & (x <= 3))
    error = (functions.mean(0) - nuts["mean"]) / nuts["sd"]
    ratio = (functions.std(0) / nuts["sd"]).log()
    return {
        "mean": error[near].square().mean().sqrt().item(),
        "ratio": ratio[near].mean().exp().item(),
        "ratio between the data": ratio[(x > -1) & (x < 0.5)].mean().exp().item(),
        "correlation": torch.corrcoef(torch.stack([functions.mean(0), nuts["mean"]]))[0, 1].item(),
    }


def test_a_network_with_a_full_covariance_predicts_like_nuts_where_there_are_data() -> None:
    """253 weights, 140 rows in batches of 70, from a maximum of the posterior. Predictive means within 0.4 (RMS) of
    NUTS's standard deviations, predictive standard deviations within 10 % (geometric mean), and the means' correlation
    over all 33 test inputs above 0.99; 0.24 to 0.27, 1 % and 0.998 over the optimizer's seeds. Maxima differ: of six, three
    give means that are off by 0.65 to 0.73 instead. In the gap between the data NUTS passes between modes and is wider: one
    Gaussian is at a single mode, and has less than half of its standard deviation there (0.3)."""
    target = load("network")
    start = pretrained(target)
    mean, covariance = fit(target, 1000, 70, FullCovariance(), 1000.0, start, initial_precision=10.0)
    errors = predictive_errors(target, mean, covariance)
    assert errors["mean"] < 0.4
    assert 0.9 < errors["ratio"] < 1.1
    assert errors["correlation"] > 0.99
    assert errors["ratio between the data"] < 0.5


def test_a_network_mean_field_has_the_shape_of_nuts_predictions_but_is_too_wide() -> None:
    """The mean-field posterior of the same network underfits, as is known of it: its means correlate with NUTS's above
    0.8, but are off by 0.4 to 2 standard deviations (RMS), where the full covariance is below 0.4, and its predictive
    standard deviations are 1.7 to 2.6 times too wide where there are data; 0.82 to 0.99, 0.6 to 1.9 and 2.0 to 2.3 over
    seeds and six maxima."""
    target = load("network")
    start = pretrained(target)
    mean, covariance = fit(target, 2000, 35, MeanField(), 100.0, start, initial_precision=10.0)
    errors = predictive_errors(target, mean, covariance)
    assert errors["correlation"] > 0.8
    assert 0.4 < errors["mean"] < 2.0
    assert 1.7 < errors["ratio"] < 2.6
