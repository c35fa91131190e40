"""The update's statistics are unbiased under mini-batches and draws, and the penalty adds no noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import Categorical, ForwardKL, Prior, ProximalScore
from proxscore.inference.elementwise import Settings, stepped
from proxscore.inference.step import ProximalStep

N, BATCH = 120, 10


class Problem:
    """A small nonlinear classifier with the statistics of one iteration, seen through a single optimizer."""

    def __init__(self, paired: bool, draws: int = 1) -> None:
        torch.manual_seed(0)
        self.x, self.y = torch.randn(N, 4, dtype=torch.float64), torch.randint(3, (N,))
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        prior = Prior(scale=0.7, mean={"0.weight": torch.full((5, 4), 0.3)})
        self.optimizer = ProximalScore(
            self.model.named_parameters(),
            N,
            prior=prior,
            paired=paired,
            draws=draws,
            momentum=0.0,
            initial_precision=0.2,
            metric="posterior",
        )

    def statistics(self, rows: Tensor, iteration: int = 0) -> Tensor:
        """Whitened mean statistic u and curvature statistic k, (2, P), from these rows and the iteration's noise."""
        self.optimizer.param_groups[0]["step"] = iteration
        for _ in self.optimizer.draws():
            Categorical().nll(self.model(self.x[rows]), self.y[rows]).mean().backward()
        u, k = [], []
        (part,) = self.optimizer._all_parts()
        for (name, parameter, state), taken in zip(self.optimizer.sampled(), part.taken(), strict=False):
            prior_mean = 0.3 if name == "0.weight" else 0.0
            score = -N * taken.view_as(parameter) - (parameter.detach() - prior_mean) / 0.7**2
            u.append((score / state["precision"].sqrt()).flatten())
            k.append(state.get("curvature", parameter.grad).flatten())
        return torch.stack([torch.cat(u), torch.cat(k)])


@pytest.mark.parametrize(("paired", "draws"), [(True, 1), (False, 1), (True, 2), (False, 3)])
def test_the_average_over_a_partition_into_mini_batches_is_the_full_batch_statistic(paired: bool, draws: int) -> None:
    """At fixed draws the statistics are linear in the mini-batch score: the average is exact, to rounding."""
    problem = Problem(paired, draws)
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    parts = torch.stack([problem.statistics(part) for part in rows.split(BATCH)])
    full = problem.statistics(torch.arange(N))
    torch.testing.assert_close(parts.mean(0), full, rtol=1e-10, atol=1e-10)
    assert parts.std(0).mean() > 0.05  # and mini-batches do differ


@pytest.mark.parametrize("paired", [True, False])
def test_statistics_over_random_mini_batches_and_draws_have_the_full_batch_mean(paired: bool) -> None:
    """20 random projections of (u, k), 250 mini-batches with as many draws, full batch at the same draws as reference:
    within 4.5 standard errors (for 20 normal numbers the chance of more is 1.4e-4; the seeds are fixed)."""
    problem = Problem(paired)
    generator = torch.Generator().manual_seed(2)
    differences = []
    for iteration in range(250):
        rows = torch.randint(N, (BATCH,), generator=generator)
        differences.append(problem.statistics(rows, iteration) - problem.statistics(torch.arange(N), iteration))
    values = torch.stack(differences)  # 250 x 2 x P
    directions = torch.randn(10, values.shape[2], generator=generator, dtype=torch.float64)
    projected = (values @ directions.T).flatten(1)
    z = projected.mean(0) / (projected.std(0) / len(values) ** 0.5)
    assert z.abs().max() < 4.5


def test_both_modes_estimate_the_same_statistics() -> None:
    """Paired and unpaired draws, each averaged over draws, agree: different estimators of one expectation."""
    means, errors = [], []
    for paired in (True, False):
        problem = Problem(paired)
        values = torch.stack([problem.statistics(torch.arange(N), iteration) for iteration in range(300)])
        means.append(values.mean(0))
        errors.append(values.std(0) / 300**0.5)
    z = (means[0] - means[1]) / (errors[0] ** 2 + errors[1] ** 2).sqrt()
    assert z.abs().max() < 4.5  # 86 numbers
    assert errors[0][0].mean() < 0.7 * errors[1][0].mean()  # and pairs give the more precise mean statistic


class Quartic(nn.Module):
    """-log likelihood per data point = sum over coordinates of a w^4 / 4."""

    def __init__(self, weights: Tensor, a: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights)
        self.a = a

    def forward(self) -> Tensor:
        return self.a * self.weight.pow(4).sum() / 4


@pytest.mark.parametrize("paired", [True, False])
def test_the_statistics_are_the_expected_score_and_curvature_of_a_quartic(paired: bool) -> None:
    """With N data points and v = 1 / Lambda:  E u = -(N a (m^3 + 3 m v) + m / s^2) / sqrt(Lambda),
    E k = (3 N a (m^2 + v) + 1 / s^2) / Lambda. 40,000 equal coordinates; within 4.5 standard errors."""
    m, a, n, scale = 0.5, 2.0, 30.0, 0.8
    model = Quartic(torch.full((200, 200), m, dtype=torch.float64), a)
    optimizer = ProximalScore(
        model.named_parameters(),
        n,
        prior=Prior(scale=scale),
        paired=paired,
        momentum=0.0,
        initial_precision=0.5,
        metric="posterior",
    )
    for _ in optimizer.draws():
        model().backward()
    ((_, parameter, _),) = optimizer.sampled()
    precision = n * 0.5 + scale**-2
    (part,) = optimizer._all_parts()
    u = (-n * part.taken()[0] - m / scale**2) * precision**-0.5
    k = parameter.grad
    assert k is not None
    expected_u = -(n * a * (m**3 + 3 * m / precision) + m / scale**2) * precision**-0.5
    expected_k = (3 * n * a * (m**2 + 1 / precision) + scale**-2) / precision
    for values, expected in ((u, expected_u), (k, expected_k)):
        standard_error = values.std() / values.numel() ** 0.5
        assert abs(values.mean() - expected) < 4.5 * standard_error
        assert standard_error < 0.02 * abs(expected)


def test_the_steps_are_deterministic_functions_of_the_statistics() -> None:
    """The new precision depends on k alone, the mean step is linear in the score, and without statistics (k = 1, u = 0)
    the penalty's pull vanishes: it takes no score and adds no noise."""

    def update(k: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        shape = k.shape
        settings = Settings.of(ProximalStep(ForwardKL(), (7.0, 3.0), score_scale=-5.0), 0.0, 0.0)
        nothing = torch.zeros(shape)
        return stepped(nothing, torch.full(shape, 4.0), nothing, None, score, k, None, ForwardKL(), False, settings)[:2]

    generator = torch.Generator().manual_seed(0)
    k, score = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    mean, precision = update(k, score)
    assert torch.equal(update(k, 100 * score)[1], precision)
    torch.testing.assert_close(update(k, -3 * score)[0], -3 * mean)
    rest = update(torch.ones(50), torch.zeros(50))
    assert torch.equal(rest[0], torch.zeros(50))
    torch.testing.assert_close(rest[1], torch.full((50,), 4.0))
