"""The adaptive metric of the mean: Adam's step without noise and prior, and unbiased under mini-batch noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import ForwardKL, FullCovariance, Prior, ProximalScore, Schedule

ROWS, BATCH, LR = 400, 20, 0.01
NOTHING = 1e-12  # of a prior's precision: prior scale 1e6


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def classes(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, 6, generator=generator, dtype=torch.float64), torch.randint(
        3, (ROWS,), generator=generator
    )


def batches(steps: int, seed: int = 2) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randint(ROWS, (BATCH,), generator=generator)


def loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(module(inputs), targets)


def adam_with_the_squares_of_before(steps: int) -> list[Tensor]:
    """torch.optim.Adam's running means, stepping by hand: its mean of this step over the root of its squares before."""
    module, (inputs, targets) = network(), classes()
    adam = torch.optim.Adam(module.parameters(), lr=0.0)
    for step, rows in enumerate(batches(steps)):
        before = [adam.state[p]["exp_avg_sq"].clone() if step else None for p in module.parameters()]
        adam.zero_grad()
        loss(module, inputs[rows], targets[rows]).backward()
        adam.step()
        with torch.no_grad():
            for parameter, square in zip(module.parameters(), before, strict=True):
                if square is not None:
                    mean = adam.state[parameter]["exp_avg"] / (1 - 0.9 ** (step + 1))
                    parameter -= LR * mean / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("keep_mean", [False, True])
def test_without_noise_and_prior_the_step_is_adams(paired: bool, keep_mean: bool) -> None:
    """Draws of a standard deviation of 1e-9 and a step that neither precision nor prior bounds: to rounding, Adam."""
    module, (inputs, targets) = network(), classes()
    optimizer = ProximalScore(
        module.named_parameters(),
        1e30,  # data, against which precision and prior vanish; draws are as narrow as its inverse root
        prior=Prior(scale=1e6),
        penalty=ForwardKL(precision=1e9),
        lr=LR,
        initial_precision=1e-12,
        max_mean_step=1e9,
        paired=paired,
        keep_mean=keep_mean,
        momentum=0.9,
        metric="adaptive",
    )
    for rows in batches(60):
        for _ in optimizer.draws():
            loss(module, inputs[rows], targets[rows]).backward()
        optimizer.step()
    for expected, parameter in zip(adam_with_the_squares_of_before(60), module.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def linear() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    return inputs, inputs @ weights + torch.randn(ROWS, generator=generator, dtype=torch.float64)


def warmed(family: FullCovariance | None) -> tuple[nn.Linear, ProximalScore]:
    """A linear model after ten full-batch steps, whose metric is under way."""
    torch.manual_seed(0)
    module = nn.Linear(4, 1, bias=False).double()
    optimizer = ProximalScore(
        module.named_parameters(),
        ROWS,
        prior=Prior(scale=1.0),
        lr=LR,
        initial_precision=1.0,
        momentum=0.0,
        family=family,
        max_mean_step=1e9,
        metric="adaptive",
        paired=True,
    )
    for _ in range(10):
        advance(module, optimizer, torch.arange(ROWS))
    return module, optimizer


def advance(module: nn.Linear, optimizer: ProximalScore, rows: Tensor) -> None:
    inputs, targets = linear()
    for _ in optimizer.draws():
        (0.5 * (module(inputs[rows])[:, 0] - targets[rows]).square()).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("family", [None, FullCovariance()])
def test_the_expected_step_over_mini_batches_is_the_full_batchs(family: FullCovariance | None) -> None:
    """Over the 20 batches of a partition, from one state: the average move is the full batch's to the second order of the
    precision ratio's noise. With the squares of the same batch in the metric, it would be off by tens of per cent."""
    module, optimizer = warmed(family)
    optimizer.penalty = ForwardKL(precision=1e9)  # the ratio is one: the mean's step alone
    weights, state = module.weight.detach().clone(), copy.deepcopy(optimizer.state_dict())

    def moved(rows: Tensor) -> Tensor:
        with torch.no_grad():
            module.weight.copy_(weights)
        optimizer.load_state_dict(copy.deepcopy(state))
        advance(module, optimizer, rows)
        return module.weight.detach() - weights

    full = moved(torch.arange(ROWS))
    parts = torch.stack([moved(rows) for rows in torch.randperm(ROWS).split(BATCH)])
    torch.testing.assert_close(parts.mean(0), full, rtol=1e-5, atol=1e-9)
    assert (parts - full).abs().max() > 0.1 * full.abs().max()  # each one is noisy


def test_the_first_step_leaves_the_mean() -> None:
    torch.manual_seed(0)
    module = nn.Linear(4, 1, bias=False).double()
    optimizer = ProximalScore(module.named_parameters(), ROWS, metric="adaptive", initial_precision=None, paired=True)
    before = module.weight.detach().clone()
    advance(module, optimizer, torch.arange(BATCH))
    assert torch.equal(module.weight, before)
    advance(module, optimizer, torch.arange(BATCH))
    assert not torch.equal(module.weight, before)


def posterior_of(precision: float) -> tuple[Tensor, Tensor]:
    inputs, targets = linear()
    exact = inputs.T @ inputs + precision * torch.eye(4, dtype=torch.float64)
    return torch.linalg.solve(exact, inputs.T @ targets), exact


@pytest.mark.parametrize("family", [None, FullCovariance()])
def test_the_linear_regressions_posterior_is_exact(family: FullCovariance | None) -> None:
    """Full batches: the mean to 1e-3 standard deviations, precisions to 3 % (of a dozen seeds, the worst had 1.7 %)."""
    torch.manual_seed(0)
    module = nn.Linear(4, 1, bias=False).double()
    penalty = ForwardKL(
        precision=20.0,
        precision_schedule=Schedule("cosine").resolve(600, 1),
        mean_schedule=Schedule("cosine").resolve(600, 1),
    )
    optimizer = ProximalScore(
        module.named_parameters(),
        ROWS,
        prior=Prior(scale=1.0),
        penalty=penalty,
        family=family,
        lr=0.05,
        metric="adaptive",
        initial_precision=None,
        paired=True,
    )
    for _ in range(600):
        advance(module, optimizer, torch.arange(ROWS))
    mean, precision = posterior_of(1.0)
    deviations = precision.diagonal().rsqrt()
    assert ((module.weight[0] - mean) / deviations).abs().max() < 1e-3
    if family is None:
        found = optimizer.state[module.weight]["precision"][0]
        torch.testing.assert_close(found, precision.diagonal(), rtol=0.03, atol=0)
    else:
        (block,) = optimizer.blocks()
        covariance = block.state["factor"] @ block.state["factor"].mT
        torch.testing.assert_close(covariance @ precision, torch.eye(4, dtype=torch.float64), rtol=0, atol=0.02)


def test_a_gradient_that_vanishes_leaves_the_prior_alone() -> None:
    """A weight that the loss does not see goes to its prior mean, in steps of at most max_mean_step times lr."""
    module = nn.Module()
    module.seen, module.unseen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = ProximalScore(
        module.named_parameters(),
        10,
        prior=Prior(scale=1.0),
        lr=0.01,
        initial_precision=0.1,
        penalty=ForwardKL(20.0),
        metric="adaptive",
        paired=True,
    )
    values = [1.0]
    for _ in range(400):
        for _ in optimizer.draws():
            (0.5 * (module.seen - 2).square()).sum().backward()
        optimizer.step()
        values.append(module.unseen.item())
    steps = [before - after for before, after in pairwise(values)]
    assert max(steps) <= 0.03 * (1 + 1e-5)
    assert abs(values[-1]) < 0.02
    assert math.isfinite(module.seen.item())


def test_a_tight_start_halves_adams_step_and_no_more() -> None:
    """The same steps as Adam's at half the rate, whatever the precision: draws of a standard deviation of 1e-8."""
    module, (inputs, targets) = network(), classes()
    optimizer = ProximalScore(
        module.named_parameters(),
        1e6,
        prior=Prior(scale=1e6),
        penalty=ForwardKL(precision=1e9),
        lr=2 * LR,
        initial_precision=1e10,
        max_mean_step=1e9,
        metric="adaptive",
        paired=True,
    )
    for rows in batches(60):
        for _ in optimizer.draws():
            loss(module, inputs[rows], targets[rows]).backward()
        optimizer.step()
    for expected, parameter in zip(adam_with_the_squares_of_before(60), module.parameters(), strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def test_a_prior_enters_by_its_schedule() -> None:
    """At the factor zero the steps are those under a prior of a huge scale; where it has entered, the posterior's is exact."""
    means = []
    for scale, schedule in ((0.1, Schedule("constant", warmup=10**9)), (1e4, None)):
        torch.manual_seed(0)
        module = nn.Linear(4, 1, bias=False).double()
        optimizer = ProximalScore(
            module.named_parameters(),
            ROWS,
            prior=Prior(scale=scale),
            prior_schedule=schedule,
            initial_noise=0.01,
            metric="adaptive",
            initial_precision=None,
            paired=True,
        )
        for rows in batches(50):
            advance(module, optimizer, rows)
        means.append(module.weight.detach().clone())
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-5)


def test_settings_are_refused_by_name() -> None:
    module = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="metric is 'natural'; it must be one of adaptive, posterior"):
        ProximalScore(module.named_parameters(), 10, metric="natural", initial_precision=0.1, paired=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="square_decay is 1"):
        ProximalScore(
            module.named_parameters(), 10, square_decay=1.0, metric="adaptive", initial_precision=None, paired=True
        )
    with pytest.raises(ValueError, match="is of metric='adaptive'"):
        ProximalScore(module.named_parameters(), 10, square_decay=0.9, metric="posterior")
    with pytest.raises(ValueError, match="initial_noise and initial_precision both say how wide"):
        ProximalScore(module.named_parameters(), 10, initial_noise=0.1, initial_precision=0.1)
    with pytest.raises(ValueError, match="initial_noise is 0"):
        ProximalScore(
            module.named_parameters(), 10, initial_noise=0.0, metric="adaptive", initial_precision=None, paired=True
        )


@pytest.mark.parametrize("draws", [1, 2])
def test_noise_alone_moves_log_precisions_by_a_third_in_as_many_steps_as_their_weight(draws: int) -> None:
    """Of a loss without curvature, whose slope is noise, the curvature statistic is noise, here a thousand times one.

    The root mean square over 2,000 numbers of the sum of 400 steps, each of sigma / kappa_t with kappa_t = 3 sigma sqrt(400):
    1/3, less for the shares of the first steps, whose squares are few; its error is under 2 %.
    """
    torch.manual_seed(0)
    weights, kappa = nn.Parameter(torch.zeros(2_000, dtype=torch.float64)), 400.0
    optimizer = ProximalScore(
        [("weights", weights)],
        1e6,
        prior=Prior(scale=10.0),
        penalty=ForwardKL(kappa),
        metric="adaptive",
        initial_precision=1.0,
        lr=1e-9,
        paired=False,
        draws=draws,
    )
    start = optimizer.state[weights]["precision"].clone()
    for _ in range(int(kappa)):
        slope = torch.randn_like(weights)
        for _ in optimizer.draws():
            (weights * slope).sum().backward()
        optimizer.step()
    moved = (optimizer.state[weights]["precision"] / start).log()
    assert 0.25 < moved.square().mean().sqrt() < 0.4
    assert moved.abs().max() < 4
