"""Stacked mixture weights: the optimum of a concave problem, and what it does to a posterior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference import GradientSolver, LowRank, Mixture, ProximalScore
from proxscore.inference.families import Family
from proxscore.posterior import Posterior, predict
from proxscore.posterior.stacking import LEAST, stack, stacking_weights, wants_stacking


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
def test_the_weights_are_those_of_a_general_optimizer(seed: int) -> None:
    """SLSQP on the simplex; three components of which one may be useless."""
    logs = normal(200, 3, seed=seed) + torch.tensor([0.0, 0.3, -1.5])

    def loss(weights: object) -> float:
        return -(logs.exp() @ torch.as_tensor(weights)).log().mean().item()

    bounds, simplex = [(1e-9, 1.0)] * 3, {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = minimize(loss, [1 / 3] * 3, method="SLSQP", bounds=bounds, constraints=simplex, tol=1e-12)
    weights = stacking_weights(logs)
    assert weights.sum().item() == pytest.approx(1.0)
    assert loss(weights) < best.fun + 2e-6  # the tolerance of 1e-6, and the least weight
    torch.testing.assert_close(weights, torch.as_tensor(best.x), rtol=0, atol=0.02)


def test_the_true_weights_of_a_mixture_are_found() -> None:
    """Rows from 0.7 N(-1, 1) + 0.3 N(1, 1); 20,000 of them: within 5 standard errors (of the information, 0.0036)."""
    second = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) < 0.3
    y = normal(20_000, seed=1) + torch.where(second, 1.0, -1.0)
    logs = torch.stack([-0.5 * (y + 1) ** 2, -0.5 * (y - 1) ** 2], 1)
    densities = logs.exp()
    score = (densities[:, 1] - densities[:, 0]) / (densities @ torch.tensor([0.7, 0.3]).double())
    error = 1 / (score.square().mean().sqrt() * 20_000**0.5)
    assert abs(stacking_weights(logs)[1] - 0.3) < 5 * error < 0.06


def test_a_constant_within_a_row_changes_nothing_and_a_hopeless_component_keeps_the_least_weight() -> None:
    logs = normal(50, 2, seed=0)
    torch.testing.assert_close(stacking_weights(logs), stacking_weights(logs - 5_000.0 * normal(50, 1, seed=1).abs()))
    hopeless = torch.stack([logs[:, 0], logs[:, 0] - 3_000], 1)
    assert stacking_weights(hopeless)[1].item() == pytest.approx(LEAST)


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        (torch.zeros(0, 2), r"shape \(0, 2\); it must be rows by components"),
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.tensor([[0.0, float("nan")]]), "must be finite"),
    ],
)
def test_what_cannot_be_stacked_is_refused(logs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stacking_weights(logs)


# ------------------------------------------------------------ of a posterior


def trained(family: Family) -> tuple[nn.Module, ProximalScore]:
    torch.manual_seed(0)
    module = nn.Linear(4, 3).double()
    optimizer = ProximalScore(
        module.named_parameters(),
        100,
        family=family,
        solver=GradientSolver(2, lr=0.05),
        initial_precision=0.5,
        metric="posterior",
        paired=True,
    )
    for _ in range(20):
        for _ in optimizer.draws():
            x, y = data()
            nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module, optimizer


def data() -> tuple[Tensor, Tensor]:
    x = normal(100, 4, seed=5)
    return x, (x @ normal(4, 3, seed=6) + normal(100, 3, seed=7)).argmax(1)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    yield data()


def nll(module: nn.Module, posterior: Posterior, draws: int) -> float:
    predictive = predict(module, batches, posterior, draws=draws)
    return nn.functional.nll_loss(predictive.log_probabilities, predictive.targets).item()


def test_a_useless_component_loses_its_weight_in_draws_and_mean_and_on_disk(tmp_path: object) -> None:
    module, optimizer = trained(Mixture(3, weights="stacked"))
    posterior = Posterior.of(module, optimizer)
    assert wants_stacking(posterior)
    (joint,) = posterior.joint
    state = {name: value.clone() for name, value in joint.state.items()}
    state["means"][:, 1] = -20 * state["means"][:, 0]  # predicts the opposite
    spoilt = replace(posterior, joint=[replace(joint, state=state)])

    stacked, weights = stack(spoilt, lambda part: predict(module, batches, part, draws=64))
    assert weights[1] < 0.02  # of a third; it is right where all others are wrong: the optimum is not quite zero
    assert sum(weights) == pytest.approx(1.0)
    expected = state["means"] @ torch.tensor(weights, dtype=torch.float64)
    found = torch.cat([stacked.mean[name].flatten() for name in stacked.joint[0].names])
    torch.testing.assert_close(found, expected)
    assert nll(module, stacked, 64) < nll(module, spoilt, 64) - 0.1
    # Its draws come from the components that are left.
    nearest = []
    for index in range(50):
        draw = torch.cat([value.flatten() for value in stacked.draw(index).values()])
        distances = ((draw[:, None] - state["means"]).square() * state["precisions"]).sum(0)
        nearest.append(int(distances.argmin()))
    assert nearest.count(1) <= 3  # of 50; a third before
    loaded = Posterior.load(stacked.save(tmp_path))  # type: ignore[arg-type]
    family = loaded.joint[0].layout.family
    assert isinstance(family, Mixture)
    assert family.weights == pytest.approx(weights)
    assert not wants_stacking(loaded)
    assert all(torch.equal(value, stacked.draw(7)[name]) for name, value in loaded.draw(7).items())
    # The posterior in training is as before.
    assert posterior.joint[0].layout.family.weights == [1 / 3] * 3  # type: ignore[attr-defined]


def test_a_posterior_without_a_mixture_cannot_be_stacked() -> None:
    module, optimizer = trained(LowRank(1))
    posterior = Posterior.of(module, optimizer)
    assert not wants_stacking(posterior)
    with pytest.raises(ConfigError, match="stacking needs one mixture in a posterior; this one has 0"):
        stack(posterior, lambda part: predict(module, batches, part))


def test_uniform_and_given_weights_stay() -> None:
    for weights in ("uniform", [1.0, 3.0]):
        module, optimizer = trained(Mixture(2, weights=weights))  # type: ignore[arg-type]
        assert not wants_stacking(Posterior.of(module, optimizer))
