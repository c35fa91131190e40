"""The closed-form step of a full covariance, and its curvature statistic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from block_problems import INF, D, anchor_of, normal, stepped, symmetric, whitened
from scipy.optimize import minimize
from torch import nn

from proxscore.inference import (
    ForwardKL,
    FullCovariance,
    NoPenalty,
    Prior,
    ProximalScore,
    Quadratic,
    ReverseKL,
)
from proxscore.inference.penalties import Penalty


@pytest.mark.parametrize("kappa", [0.5, 20.0])
@pytest.mark.parametrize("eigenvalues", [[0.5, 1.0, 2.0, 4.0], [-3.0, 0.0, 1.0, 30.0]])
def test_the_full_covariance_step_minimises_loss_plus_penalty(eigenvalues: list[float], kappa: float) -> None:
    """||R - K||_F^2 / 2 + kappa (tr R - D - log det R) over R = L L^T by BFGS, to 1e-5; then the mean given R."""
    k, u, kappa_mean, anchor = symmetric(eigenvalues), normal(D, seed=9), 1.7, anchor_of()
    ratio, step = whitened(anchor, stepped(anchor, u, k, ForwardKL(), (kappa, kappa_mean)))
    rows, columns = np.tril_indices(D)

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        lower = torch.zeros(D, D, dtype=torch.float64)
        free = torch.tensor(values, requires_grad=True)
        lower = lower.index_put((torch.tensor(rows), torch.tensor(columns)), free)
        lower = lower.tril(-1) + lower.diagonal().exp().diag()
        r = lower @ lower.mT
        loss = (r - k).square().sum() / 2 + kappa * (r.trace() - D - 2 * lower.diagonal().log().sum())
        (gradient,) = torch.autograd.grad(loss, free)
        return loss.item(), gradient.numpy()

    found = minimize(objective, np.zeros(len(rows)), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    lower = torch.zeros(D, D, dtype=torch.float64)
    lower[rows, columns] = torch.tensor(found.x)
    lower = lower.tril(-1) + lower.diagonal().exp().diag()
    torch.testing.assert_close(ratio, lower @ lower.mT, rtol=1e-5, atol=1e-5)

    def of_mean(d: np.ndarray) -> float:
        x = torch.tensor(d)
        return float((x - u).square().sum() / 2 + kappa_mean * x @ torch.linalg.solve(ratio, x))

    d = torch.tensor(minimize(of_mean, np.zeros(D), options={"gtol": 1e-9}).x)
    torch.testing.assert_close(step, torch.linalg.solve(ratio, d), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "penalty", [ForwardKL(), ReverseKL(), Quadratic(), NoPenalty()], ids=lambda p: type(p).__name__
)
def test_the_full_covariance_step_is_the_mean_field_step_in_the_eigenbasis(penalty: Penalty) -> None:
    eigenvalues, weights, anchor, u = [0.5, 0.8, 1.3, 1.6], (3.0, 0.7), anchor_of(), normal(D, seed=9)
    k = symmetric(eigenvalues)
    vectors = torch.linalg.eigh(k).eigenvectors
    r = penalty.precision_ratio(torch.tensor(eigenvalues, dtype=torch.float64), weights[0])
    expected = penalty.mean_step(vectors.mT @ u, r, weights[1])
    ratio, step = whitened(anchor, stepped(anchor, u, k, penalty, weights))
    torch.testing.assert_close(ratio, vectors @ r.diag() @ vectors.mT)
    torch.testing.assert_close(step, vectors @ expected)


def test_infinite_weights_leave_a_full_covariance_where_it_is() -> None:
    anchor = anchor_of()
    state = stepped(anchor, normal(D, seed=9), symmetric([-3.0, 0.0, 1.0, 30.0]), ForwardKL(), (INF, INF))
    for name, value in anchor.items():
        torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-12)


def test_the_trust_region_scales_the_log_ratio_and_bounds_the_length_of_the_mean_step() -> None:
    anchor, limits = anchor_of(), {"max_log_precision_step": 0.3, "max_mean_step": 0.1}
    u, k = 50 * normal(D, seed=9), symmetric([-90.0, 0.9, 1.1, 90.0])
    ratio, step = whitened(anchor, stepped(anchor, u, k, ForwardKL(), (1.0, 1.0), **limits))
    weight = (torch.linalg.eigvalsh(k) - 1).norm().item() / 0.3  # the penalty's own solution at a raised weight
    expected, _ = whitened(anchor, stepped(anchor, 0 * u, k, ForwardKL(), (weight, INF)))
    logs, solution = torch.linalg.eigvalsh(ratio).log(), torch.linalg.eigvalsh(expected).log()
    torch.testing.assert_close(logs / logs.norm(), solution / solution.norm())  # shortened to the bound if beyond it
    assert logs.norm().item() == pytest.approx(min(0.3, solution.norm().item()))
    assert step.norm().item() == pytest.approx(0.1 * D**0.5)
    inside = stepped(anchor, 0 * u, torch.eye(D, dtype=torch.float64) * 1.01, ForwardKL(), (1.0, 1.0), **limits)
    torch.testing.assert_close(
        inside["factor"],
        stepped(anchor, 0 * u, torch.eye(D, dtype=torch.float64) * 1.01, ForwardKL(), (1.0, 1.0))["factor"],
    )


def test_a_full_covariance_of_many_numbers_stays_sound_under_mini_batch_noise() -> None:
    """At the defaults, where eigenvalues that are bounded one by one end with a condition number beyond 1e6: 256 numbers at
    their posterior, whose scores carry noise of ten posterior standard errors a draw; single draws, 300 steps."""
    size = 256
    theta = nn.Parameter(torch.zeros(size, dtype=torch.float64))
    optimizer = ProximalScore(
        [("theta", theta)],
        1.0,
        prior=Prior(norms="flat", biases="flat"),
        family=FullCovariance(),
        penalty=ForwardKL(300.0, 2.0),
        initial_precision=1.0,
        paired=False,
        metric="posterior",
    )
    common = normal(300, size, seed=3)
    for step in range(300):
        for _ in optimizer.draws():
            (0.5 * theta @ theta + 10 * common[step] @ theta).backward()
        optimizer.step()
    (block,) = optimizer.blocks()
    singular = torch.linalg.svdvals(block.state["factor"])
    assert (singular.max() / singular.min()) ** 2 < 30


@pytest.mark.parametrize("count", [1, 2])
def test_the_curvature_statistic_of_a_full_covariance_has_the_whitened_curvature_as_its_mean(count: int) -> None:
    """A quadratic target of precision A: E K = C^T A C, over 5,000 draws or pairs within 5 standard errors."""
    anchor, a, prior = anchor_of(), symmetric([0.3, 0.7, 1.5, 4.0], seed=5), torch.linspace(0.1, 0.4, D).double()
    expected = anchor["factor"].mT @ a @ anchor["factor"]
    pull = 1.3 * normal(D, seed=8)
    a_likelihood, samples = a - prior.diag() if count == 1 else a, []
    for noise in normal(5_000, D, seed=1):
        offsets = [sign * anchor["factor"] @ noise for sign in (1.0, -1.0)][:count]
        scores = [pull - a_likelihood @ offset for offset in offsets]
        samples.append(FullCovariance().curvature(anchor, noise, scores, prior))
    stacked = torch.stack(samples)
    error = stacked.std(0) / len(samples) ** 0.5
    assert ((stacked.mean(0) - expected).abs() < 5 * error).all()


def test_the_curvature_statistic_of_a_pair_is_without_noise_at_the_optimum() -> None:
    anchor = anchor_of()
    precision = torch.linalg.inv(anchor["factor"] @ anchor["factor"].mT)
    for noise in normal(5, D, seed=1):
        scores = [-precision @ (sign * anchor["factor"] @ noise) + 0.3 for sign in (1.0, -1.0)]
        k = FullCovariance().curvature(anchor, noise, scores, torch.ones(D))
        torch.testing.assert_close(k, torch.eye(D, dtype=torch.float64))
