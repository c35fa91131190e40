"""The gradient solver: against the closed form, and its inner steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from block_problems import HEADS, Bowl, D, Two, evaluate, normal, same, stepped, symmetric, whitened
from torch import Tensor

from proxscore.inference import (
    ForwardKL,
    FullCovariance,
    GradientSolver,
    LowRank,
    MeanField,
    Mixture,
    NoPenalty,
    Prior,
    ProximalScore,
    Quadratic,
    ReverseKL,
)
from proxscore.inference.families import Family, State
from proxscore.inference.families.base import whole
from proxscore.inference.penalties import Penalty
from proxscore.inference.solver import penalty_value

PENALTIES: list[type[Penalty]] = [ForwardKL, ReverseKL, Quadratic]


class Decaying(torch.optim.SGD):
    """SGD with the learning rate lr / (1 + t / horizon) in step t, whatever the solver sets, on the first ``only`` tensors."""

    def __init__(self, tensors: list[Tensor], lr: float, only: int | None = None, horizon: float = 20) -> None:
        super().__init__(tensors[:only], lr=lr)
        self.taken, self.horizon = 1, horizon

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] /= 1 + self.taken / self.horizon
        self.taken += 1
        return super().step(closure)


def one_anchor(
    family: Family, bowl: Bowl, penalty: Penalty, steps: int, draws: int, options: Mapping[str, Any] | None = None
) -> State:
    """Where the gradient solver moves the anchor after ``steps`` inner steps; unit initial precision."""
    solver = GradientSolver(steps, Decaying, lr=0.08, options=options or {})
    optimizer = ProximalScore(
        bowl.named_parameters(),
        1.0,
        prior=Prior(norms="flat"),
        penalty=penalty,
        family=family,
        solver=solver,
        initial_precision=1.0,
        draws=draws,
        seed=1,
        metric="posterior",
        paired=True,
    )
    (block,) = optimizer.blocks()
    before = {name: value.clone() for name, value in block.anchor.items()}
    for count in range(steps):
        assert all(torch.equal(block.anchor[name], value) for name, value in before.items()), count
        for _ in optimizer.draws():
            bowl().backward()
        optimizer.step()
    return block.anchor


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("family", [MeanField(), FullCovariance()], ids=["mean_field", "full_covariance"])
def test_gradient_solver_and_closed_form_agree_on_the_precision(family: Family, penalty: type[Penalty]) -> None:
    """The mean is at its optimum, so the mean penalty's coupling kappa_m d^2 / r vanishes. 150 inner steps of 4 pairs: R
    within 0.07 (Frobenius) of the closed form's from the exact K, that of twice the weight being twice as far away. The
    quadratic penalty takes one pair: on the pair of its loss it leaves no noise at the optimum."""
    eigenvalues, draws = [0.4, 0.8, 1.2, 1.9], 1 if penalty is Quadratic else 4
    k = symmetric(eigenvalues) if isinstance(family, FullCovariance) else torch.tensor(eigenvalues).double().diag()
    centre, rule, still = normal(D, seed=2), penalty(2.0, 1.0), torch.zeros(D, dtype=torch.float64)
    anchor = {"mean": centre, "factor": torch.eye(D, dtype=torch.float64)}
    expected, twice = (whitened(anchor, stepped(anchor, still, k, rule, (kappa, 1.0)))[0] for kappa in (2.0, 4.0))
    state = one_anchor(family, Bowl(k, centre, centre), rule, 150, draws)
    found = state["precision"].diag() if isinstance(family, MeanField) else whitened(anchor, state)[0]
    assert (twice - expected).norm() > 0.14
    assert (found - expected).norm() < 0.07
    torch.testing.assert_close(state["mean"], centre, rtol=0, atol=0.02)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("family", [MeanField(), FullCovariance()], ids=["mean_field", "full_covariance"])
def test_gradient_solver_and_closed_form_agree_on_the_mean_given_the_precision(
    family: Family, penalty: type[Penalty]
) -> None:
    """The inner optimizer moves the mean alone: r = 1, and every pair's average score is exact. To 1e-4."""
    k, start = torch.eye(D, dtype=torch.float64), normal(D, seed=2)
    rule, u = penalty(2.0, 0.8), normal(D, seed=4)
    anchor = {"mean": start, "factor": torch.eye(D, dtype=torch.float64)}
    expected = stepped(anchor, u, k, rule, (2.0, 0.8))["mean"]
    state = one_anchor(family, Bowl(k, start + u, start), rule, 150, 1, {"only": 1})
    assert (expected - start).abs().max() > 0.3
    torch.testing.assert_close(state["mean"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("family", [MeanField(), FullCovariance()], ids=["mean_field", "full_covariance"])
def test_the_gradient_solvers_penalty_is_the_closed_forms(family: Family, penalty: type[Penalty]) -> None:
    """Exactly, away from the anchor in both parts: mean over draws sqrt(D) e_i, whose second moment is the identity."""
    anchor = family.initial(normal(D, seed=0), normal(D, seed=1).exp(), torch.Size((D,)), lambda j: normal(D, seed=j))
    parameters = {
        name: value + 0.3 * normal(*value.shape, seed=5 + len(name))
        for name, value in family.parameters(anchor).items()
    }
    state = family.candidate(anchor, parameters)
    root = anchor["precision"].rsqrt().diag() if isinstance(family, MeanField) else anchor["factor"]
    factor = state["precision"].rsqrt().diag() if isinstance(family, MeanField) else state["factor"]
    ratio, step = whitened({"mean": anchor["mean"], "factor": root}, {"mean": state["mean"], "factor": factor})
    d, eye = ratio @ step, torch.eye(D, dtype=torch.float64)
    precision, mean = {
        ForwardKL: (ratio.trace() - D - ratio.logdet(), d @ step),
        ReverseKL: (ratio.logdet() + torch.linalg.inv(ratio).trace() - D, step @ step),
        Quadratic: ((ratio - eye).square().sum() / 2, d @ d),
    }[penalty]
    values = []
    for noise in D**0.5 * eye:
        pair = [family.draw(anchor, noise, noise[:0], sign) for sign in (1.0, -1.0)]
        value = penalty_value(penalty(), family, anchor, parameters, (3.0, 0.7), (pair[0], pair[1]), whole)
        assert value is not None
        values.append(value)
    torch.testing.assert_close(torch.stack(values).mean(), 3.0 * precision + 0.7 * mean, rtol=1e-9, atol=1e-9)


def test_without_a_divergence_the_penalty_is_the_forward_one_but_for_a_constant() -> None:
    """As the mean-field's, its divergence withheld: differences between two candidates, averaged over 2,000 pairs, within
    5 standard errors."""

    class Withheld(Mixture):
        kl = Family.kl

    mixture, gaussian, size = Withheld(1), MeanField(), torch.Size((D,))
    mean, precision = normal(D, seed=0), normal(D, seed=1).exp()
    anchor = mixture.initial(mean, precision, size, lambda j: normal(D, seed=j))
    plain = gaussian.initial(mean, precision, size, lambda j: normal(D, seed=j))
    steps, logs = 0.3 * normal(D, 1, seed=6), 0.3 * normal(D, 1, seed=7)
    moved, still = {"steps": steps, "log_ratios": logs}, {"steps": 0 * steps, "log_ratios": 0 * logs}
    differences = []
    for noise in normal(2000, D, seed=8):
        first, second = (mixture.draw(anchor, noise, normal(1, seed=1), sign) for sign in (1.0, -1.0))
        there, here = (
            penalty_value(ForwardKL(), mixture, anchor, p, (2.0, 2.0), (first, second), whole) for p in (moved, still)
        )
        assert there is not None
        assert here is not None
        differences.append(there - here)
    sample = torch.stack(differences)
    candidate = gaussian.candidate(plain, {"step": steps[:, 0], "log_ratio": logs[:, 0]})
    expected = 2 * 2.0 * sum(gaussian.kl(plain, candidate, whole))
    assert abs(sample.mean() - expected) < 5 * sample.std() / 2000**0.5


def test_without_a_penalty_the_gradient_solver_matches_the_scores() -> None:
    """The optimum of score matching alone is the target itself: no noise is left there. To 0.03 after 200 steps."""
    a, centre, start = symmetric([0.8, 1.0, 1.4, 1.9]), normal(D, seed=2) + 0.3, normal(D, seed=2)
    state = one_anchor(FullCovariance(), Bowl(a, centre, start), NoPenalty(), 200, 1, {"horizon": 200})
    precision = torch.linalg.inv(state["factor"] @ state["factor"].mT)
    torch.testing.assert_close(precision, a, rtol=0, atol=0.03)
    torch.testing.assert_close(state["mean"], centre, rtol=0, atol=0.03)


@pytest.mark.parametrize("inner", [2, 3])
@pytest.mark.parametrize("kind", ["low_rank", "kronecker", "mixture"])
def test_the_anchor_moves_every_inner_steps_and_draws_come_from_it(kind: str, inner: int) -> None:
    """In between the candidate moves, and with it the mean that the weights hold outside the draw loop."""
    module = Two()
    optimizer = ProximalScore(
        module.named_parameters(),
        20,
        families=HEADS[kind](),
        solver=GradientSolver(inner, lr=0.05),
        seed=3,
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    block = next(block for block in optimizer.blocks() if block.members[0].name.startswith("head"))
    for step in range(1, 2 * inner + 1):
        anchor, state = ({n: v.clone() for n, v in s.items()} for s in (block.anchor, block.state))
        drawn = []
        for _ in optimizer.draws():
            drawn.append(block.layout.vector(m.parameter for m in block.members))
            evaluate(module, step).backward()
        centers = anchor["means"].T if kind == "mixture" else anchor["mean"][None]
        assert ((drawn[0] + drawn[1]) / 2 - centers).abs().amax(1).min() < 1e-12
        optimizer.step()
        assert same(block.anchor, anchor) == (step % inner != 0)
        assert not same(block.state, state)
        held = block.layout.vector(m.parameter for m in block.members)
        assert torch.equal(held, block.family.mean(block.state))


@pytest.mark.parametrize(
    ("optimizer", "lr", "options"),
    [
        (torch.optim.SGD, 0.02, {}),
        (torch.optim.SGD, 0.003, {"momentum": 0.9}),
        (torch.optim.Adam, 0.05, {}),
        (torch.optim.AdamW, 0.05, {"weight_decay": 0.0}),
        (torch.optim.RMSprop, 0.02, {}),
        (torch.optim.Adagrad, 0.1, {}),
        (torch.optim.NAdam, 0.05, {}),
    ],
)
@pytest.mark.parametrize("family", [LowRank(2), FullCovariance()], ids=["low_rank", "full_covariance"])
def test_any_torch_optimizer_takes_the_inner_steps(
    family: Family, optimizer: Callable[..., torch.optim.Optimizer], lr: float, options: dict[str, Any]
) -> None:
    """150 steps towards a quadratic target: the divergence from it falls below a tenth of the first."""
    a, centre = symmetric([0.5, 1.0, 2.0, 3.0]), normal(D, seed=2)
    bowl = Bowl(a, centre, centre + 1.5)
    training = ProximalScore(
        bowl.named_parameters(),
        1.0,
        prior=Prior(norms="flat"),
        penalty=ForwardKL(1.0, 0.5),
        family=family,
        solver=GradientSolver(5, optimizer, lr, options),
        initial_precision=1.0,
        metric="posterior",
        paired=True,
    )
    (block,) = training.blocks()
    target = {"mean": centre, "factor": torch.linalg.cholesky(torch.linalg.inv(a))}

    def divergence() -> float:
        state = block.anchor
        if isinstance(family, LowRank):
            sigma = state["variance"].diag() + state["factor"] @ state["factor"].mT
            state = {"mean": state["mean"], "factor": torch.linalg.cholesky(sigma)}
        return sum(FullCovariance().kl(state, target, whole)).item()  # type: ignore[union-attr]

    before = divergence()
    for _ in range(150):
        for _ in training.draws():
            bowl().backward()
        training.step()
    assert divergence() < before / 10
