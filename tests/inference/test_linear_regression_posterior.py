"""Bayesian linear regression: mini-batched proximal score matching reaches the best mean-field posterior.

Of a Gaussian posterior N(m, A^-1) the optimum of the objective is the exact mean m and the precision diag(A).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import ForwardKL, Gaussian, Prior, ProximalScore, Schedule

N, D, BATCH, NOISE = 1000, 6, 200, 2.0


class TwoInputs(nn.Module):
    """A linear model whose coefficients lie in two layers, so that patterns can tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 1, dtype=torch.float64), nn.Linear(3, 1, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x[:, :3]) + self.second(x[:, 3:])).squeeze(-1)


@dataclass
class Fit:
    """A fitted posterior over (first.weight, first.bias, second.weight): 3 + 1 + 3 numbers."""

    mean: Tensor
    precision: Tensor
    noise: float


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(D, dtype=torch.float64) + 0.05  # mildly correlated columns
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) @ mixing
    y = x @ torch.randn(D, generator=generator, dtype=torch.float64) / 2 + 0.4
    return x, y + NOISE * torch.randn(N, generator=generator, dtype=torch.float64)


def exact(prior_precision: Tensor, prior_mean: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and precision matrix in closed form, coefficients ordered as in :class:`Fit`."""
    x, y = data()
    design = torch.cat([x[:, :3], torch.ones(N, 1, dtype=torch.float64), x[:, 3:]], 1)
    weight = 1 / (NOISE**2 * temperature)
    precision = weight * design.T @ design + prior_precision.diag()
    return torch.linalg.solve(precision, weight * design.T @ y + prior_precision * prior_mean), precision


def fit(steps: int, kappa: float = 20.0, likelihood: Gaussian | None = None, **settings: Any) -> Fit:
    """Cosine schedules take both proximal steps to zero, which averages the mini-batch noise out."""
    x, y = data()
    torch.manual_seed(0)
    model, likelihood = TwoInputs(), likelihood or Gaussian(NOISE)
    cosine = Schedule("cosine", length=steps)
    optimizer = ProximalScore(
        [*model.named_parameters(), *likelihood.named_parameters()],
        N,
        penalty=ForwardKL(kappa, 1.0, cosine, cosine),
        metric="posterior",
        initial_precision=0.5,
        max_mean_step=1.0,
        **({"paired": True} | settings),
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps * BATCH // N):
        for rows in torch.randperm(N, generator=generator).split(BATCH):
            for _ in optimizer.draws():
                likelihood.nll(model(x[rows]), y[rows]).mean().backward()
            optimizer.step()
    sampled = {name: (parameter, state) for name, parameter, state in optimizer.sampled()}
    means = [sampled[name][0].detach().flatten() for name in ("first.weight", "first.bias", "second.weight")]
    precisions = [sampled[name][1]["precision"].flatten() for name in ("first.weight", "first.bias", "second.weight")]
    return Fit(torch.cat(means), torch.cat(precisions), likelihood.log_noise.exp().item())


def errors(result: Fit, mean: Tensor, precision: Tensor) -> tuple[float, float]:
    """Largest error of the mean in exact posterior standard deviations, and of log-precision against diag(A)."""
    deviation = torch.linalg.inv(precision).diagonal().sqrt()
    mean_error = ((result.mean - mean) / deviation).abs().max()
    return mean_error.item(), (result.precision / precision.diagonal()).log().abs().max().item()


def test_paired_and_unpaired_draws_reach_the_exact_mean_and_the_precision_diagonal() -> None:
    """Tolerances: paired 0.05 standard deviations and 10 % of the precision; unpaired 0.5 and a factor of 1.65."""
    prior = torch.ones(7, dtype=torch.float64)
    target = exact(prior, torch.zeros(7, dtype=torch.float64))
    paired = errors(fit(400, prior=Prior(scale=1.0)), *target)
    unpaired = errors(fit(400, prior=Prior(scale=1.0), paired=False), *target)
    assert paired[0] < 0.05
    assert paired[1] < 0.1
    assert unpaired[0] < 0.5
    assert unpaired[1] < 0.5
    assert 3 * paired[0] < unpaired[0]
    assert 3 * paired[1] < unpaired[1]


@pytest.mark.parametrize(
    ("settings", "prior_precision", "prior_mean", "temperature"),
    [
        # A prior as strong as the data (250), so that it shows.
        (dict(scale=0.06), [277.78] * 7, [0.0] * 7, 1.0),
        (dict(scale=0.06, mean={"first.weight": [[1.0, -1.0, 2.0]]}), [277.78] * 7, [1.0, -1, 2, 0, 0, 0, 0], 1.0),
        (dict(scale=1.0, scales={"second.*": 0.05}), [1.0] * 4 + [400.0] * 3, [0.0] * 7, 1.0),
        (dict(scale=0.06, biases="flat"), [277.78] * 3 + [0.0] + [277.78] * 3, [0.0] * 7, 1.0),
        (dict(scale=0.1), [100.0] * 7, [0.0] * 7, 5.0),
        (dict(scale=0.1), [100.0] * 7, [0.0] * 7, 0.2),
    ],
    ids=["zero mean", "given mean", "scales by pattern", "flat biases", "hot", "cold"],
)
def test_prior_and_temperature_enter_the_posterior_as_in_the_closed_form(
    settings: dict[str, Any], prior_precision: list[float], prior_mean: list[float], temperature: float
) -> None:
    settings |= {"mean": {name: torch.tensor(value) for name, value in settings.get("mean", {}).items()}}
    result = fit(150, kappa=10.0, prior=Prior(**settings), temperature=temperature)
    target = exact(
        torch.tensor(prior_precision, dtype=torch.float64), torch.tensor(prior_mean, dtype=torch.float64), temperature
    )
    mean_error, precision_error = errors(result, *target)
    assert mean_error < 0.2  # posterior standard deviations
    assert precision_error < 0.15


def test_a_learned_noise_approaches_the_noise_of_the_data() -> None:
    """The maximum-likelihood estimate of the noise is within a few percent of the truth: 1 / sqrt(2 N) = 2 %."""
    settings = dict(prior=Prior(scale=1.0), point_lr=0.03)
    assert fit(250, likelihood=Gaussian(3.0, learned=True), **settings).noise == pytest.approx(NOISE, rel=0.1)


def test_paired_draws_have_no_variance_at_the_optimum_of_an_orthogonal_design() -> None:
    """k = 1 whatever the draw: the precision does not move at all, although each step draws anew."""
    q, _ = torch.linalg.qr(torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x, y = q * N**0.5, data()[1]
    model = nn.Linear(D, 1, bias=False, dtype=torch.float64)
    precision = N / NOISE**2 + 1.0
    likelihood = Gaussian(NOISE).double()
    likelihood.log_noise.fill_(math.log(NOISE))
    settings = dict(prior=Prior(scale=1.0), penalty=ForwardKL(1.0, 1.0), initial_precision=1 / NOISE**2)

    def precisions(paired: bool) -> Tensor:
        with torch.no_grad():
            model.weight.copy_((x.T @ y / NOISE**2 / precision)[None])
        optimizer = ProximalScore(
            model.named_parameters(), N, paired=paired, **({"metric": "posterior", "initial_precision": 0.1} | settings)
        )
        for _ in range(5):
            for _ in optimizer.draws():
                likelihood.nll(model(x).squeeze(-1), y).mean().backward()
            optimizer.step()
        ((_, _, state),) = optimizer.sampled()
        return state["precision"]

    torch.testing.assert_close(precisions(True), torch.full((1, D), precision, dtype=torch.float64), rtol=1e-9, atol=0)
    assert (precisions(False) / precision - 1).abs().max() > 0.05
