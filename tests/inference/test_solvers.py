"""The proximal step of blocks: the full covariance's closed form, the gradient solver, and what both leave alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from proxscore.config import FAMILIES
from proxscore.inference import (
    ForwardKL,
    FullCovariance,
    Gaussian,
    GradientSolver,
    Kronecker,
    LowRank,
    MeanField,
    Mixture,
    NoPenalty,
    Prior,
    ProximalScore,
    Quadratic,
    ReverseKL,
)
from proxscore.inference.families import Distribution, Family, State
from proxscore.inference.families.base import whole
from proxscore.inference.penalties import Penalty
from proxscore.inference.solver import penalty_value
from proxscore.inference.step import ProximalStep

D = 4
INF = float("inf")
PENALTIES: list[type[Penalty]] = [ForwardKL, ReverseKL, Quadratic]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(eigenvalues: list[float], seed: int = 0) -> Tensor:
    vectors = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed)).Q
    return vectors @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ vectors.mT


def anchor_of(seed: int = 3) -> State:
    """A full-covariance anchor whose root is neither symmetric nor triangular."""
    return {
        "mean": normal(D, seed=seed),
        "factor": torch.eye(D, dtype=torch.float64) + 0.4 * normal(D, D, seed=seed + 1),
    }


def stepped(
    anchor: State, u: Tensor, k: Tensor, penalty: Penalty, weights: tuple[float, float], **limits: Any
) -> State:
    """The closed-form step from whitened statistics."""
    state = {name: value.clone() for name, value in anchor.items()}
    score = torch.linalg.solve(state["factor"].mT, u)  # u = C^T score
    FullCovariance().step(state, score, k.clone(), ProximalStep(penalty, weights, **limits), None)
    return state


def whitened(anchor: State, state: State) -> tuple[Tensor, Tensor]:
    """R = C^T Lambda C of a state, and its mean's step in whitened coordinates."""
    ratio = torch.linalg.solve(state["factor"], anchor["factor"])
    return ratio.mT @ ratio, torch.linalg.solve(anchor["factor"], state["mean"] - anchor["mean"])


# ------------------------------------------------------------ the closed form


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
    r = penalty.precision_ratio_([torch.tensor(eigenvalues, dtype=torch.float64)], weights[0])[0]
    expected = penalty.mean_step_([vectors.mT @ u], [r], weights[1])[0]
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


# ------------------------------------------------------------ the gradient solver against the closed form


class Bowl(nn.Module):
    """A quadratic target: with data size 1 and a flat prior, its score is exactly -A (w - centre)."""

    def __init__(self, precision: Tensor, centre: Tensor, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())
        self.precision, self.centre = precision, centre

    def forward(self) -> Tensor:
        offset = self.w - self.centre
        return 0.5 * offset @ self.precision @ offset


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


# ------------------------------------------------------------ draws and inner steps


class Two(nn.Module):
    """Two layers whose losses add up: what happens to the head never reaches the body."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 2, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.body(x), self.head(x)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(20, 3, seed=seed), normal(20, 2, seed=seed + 100)


def evaluate(module: nn.Module, seed: int = 0) -> Tensor:
    x, y = data(seed)
    return sum((output - y).square().mean() for output in module(x))


def train(module: nn.Module, optimizer: ProximalScore, steps: int, first: int = 0) -> None:
    for seed in range(first, first + steps):
        for _ in optimizer.draws():
            evaluate(module, seed).backward()
        optimizer.step()


HEADS: dict[str, Callable[[], dict[str, Family]]] = {
    "mean_field": dict,
    "full_covariance": lambda: {"head.*": FullCovariance()},
    "low_rank": lambda: {"head.*": LowRank(2)},
    "kronecker": lambda: {"head.weight": Kronecker()},
    "mixture": lambda: {"head.*": Mixture(2)},
    "mixed": lambda: {"head.*": LowRank(1), "head.weight": Kronecker(), "head.bias": FullCovariance()},
}
BLOCKS = [kind for kind in HEADS if kind != "mean_field"]


def states(optimizer: ProximalScore) -> dict[str, Tensor]:
    """Everything that a family or the fast path knows."""
    found = {
        f"{index}.{name}": v for index, block in enumerate(optimizer.blocks()) for name, v in block.entries().items()
    }
    for name, parameter, state in optimizer.sampled():
        found |= {f"{name}.{entry}": state[entry] for entry in ("mean", "precision")} | {name: parameter}
    return {name: value.detach().clone() for name, value in found.items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def watched(base: type[Family], seen: list[bool], *arguments: Any) -> Family:
    """A family that notes of each draw whether it, or the state it comes from, carries a graph."""

    class Watched(base):  # type: ignore[valid-type,misc]
        def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
            result = super().draw(state, noise, extra, sign)
            seen.append(carries_a_graph(result, *state.values()))
            return result

    return Watched(*arguments)


def carries_a_graph(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad or tensor.grad_fn is not None for tensor in tensors)


def reparametrised(parameters: Mapping[str, Tensor]) -> Independent:
    """A distribution whose ``rsample`` would carry the graph of its parameters into the draw."""
    return Independent(Normal(parameters["loc"], parameters["log_scale"].exp(), validate_args=False), 1)


ZEROS = torch.zeros(16, dtype=torch.float64)  # all weights and biases of Two
DRAWN: dict[str, tuple[type[Family], tuple[Any, ...], GradientSolver | None]] = {
    "mean_field in closed form": (MeanField, (), None),
    "full_covariance in closed form": (FullCovariance, (), None),
    "mean_field": (MeanField, (), GradientSolver(3)),
    "full_covariance": (FullCovariance, (), GradientSolver(3)),
    "low_rank": (LowRank, (2,), GradientSolver(3)),
    "kronecker": (Kronecker, (), GradientSolver(3)),
    "mixture": (Mixture, (2,), GradientSolver(3)),
    "distribution": (Distribution, (reparametrised, {"loc": ZEROS, "log_scale": ZEROS}), GradientSolver(3)),
}


def test_every_family_is_among_those_whose_draws_are_watched() -> None:
    assert {base for base, _, _ in DRAWN.values()} == {FAMILIES.component(kind) for kind in FAMILIES.kinds()} | {
        Distribution
    }


@pytest.mark.parametrize("paired", [True, False], ids=["pairs", "single"])
@pytest.mark.parametrize("kind", list(DRAWN))
def test_nothing_is_differentiated_through_a_draw(kind: str, paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws carry no graph although the candidate's leaves do; the weights are plain leaves; one forward and one
    backward for each evaluation; the state carries no graph."""
    base, arguments, solver = DRAWN[kind]
    module = Two()
    seen: list[bool] = []
    write = MeanField.sample_

    def sample_(self: MeanField, weights: Tensor, mean: Tensor, precision: Tensor, noise: Tensor) -> None:
        write(self, weights, mean, precision, noise)
        seen.append(carries_a_graph(weights, mean, precision))

    monkeypatch.setattr(MeanField, "sample_", sample_)  # where a mean field in closed form puts its draws, in place
    optimizer = ProximalScore(
        module.named_parameters(),
        20,
        prior=Prior(biases="point" if base is Kronecker else "informative"),
        family=watched(base, seen, *arguments),
        solver=solver,
        draws=2,
        paired=paired,
        metric="posterior",
        initial_precision=0.1,
    )
    counts = {"forward": 0, "backward": 0}
    module.register_forward_hook(lambda *_: counts.update(forward=counts["forward"] + 1))
    module.body.weight.register_post_accumulate_grad_hook(lambda _: counts.update(backward=counts["backward"] + 1))
    for step in range(4):
        for _ in optimizer.draws():
            assert all(p.is_leaf and p.grad_fn is None and p.requires_grad for p in module.parameters())
            evaluate(module, step).backward()
        optimizer.step()
        assert all(p.is_leaf and p.grad_fn is None and p.grad is None for p in module.parameters())
        expected = (step + 1) * optimizer.evaluations_per_step
        assert counts == {"forward": expected, "backward": expected}
        with torch.enable_grad():
            for block in optimizer.blocks():
                assert not carries_a_graph(*block.state.values(), *block.anchor.values())
        assert not carries_a_graph(
            *(v for held in optimizer.state.values() for v in held.values() if torch.is_tensor(v))
        )
    assert len(seen) >= 8
    assert not any(seen)


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


# ------------------------------------------------------------ several families in one model


def mixed(kind: str, **settings: Any) -> tuple[Two, ProximalScore]:
    module = Two()
    return module, ProximalScore(
        module.named_parameters(),
        20,
        families=HEADS[kind](),
        metric="posterior",
        **({"initial_precision": 0.1, "paired": True} | {"initial_precision": 0.1} | settings),
    )


@pytest.mark.parametrize("settings", [{}, {"draws": 2}, {"paired": False}], ids=["pair", "pairs", "single"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_mean_field_body_moves_bit_for_bit_alike_whatever_family_the_head_has(
    kind: str, settings: dict[str, Any]
) -> None:
    (one, alone), (two, beside) = mixed("mean_field", **settings), mixed(kind, **settings)
    train(one, alone, 4)
    train(two, beside, 4)
    body = {name: value for name, value in states(alone).items() if name.startswith("body")}
    assert len(body) == 6
    assert same(body, {name: value for name, value in states(beside).items() if name.startswith("body")})
    assert not torch.equal(one.head.weight, two.head.weight)
    assert len(list(beside.blocks())) == {"mixed": 2}.get(kind, 1)


@pytest.mark.parametrize("settings", [{}, {"draws": 2}, {"paired": False}], ids=["pair", "pairs", "single"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_the_mean_of_every_family_goes_to_the_posterior_mean(kind: str, settings: dict[str, Any]) -> None:
    """Of a linear regression (unit noise, unit prior), in 60 steps at least half of the way."""
    solver = None if kind == "full_covariance" else GradientSolver(5, lr=0.05)
    module, optimizer = mixed(
        kind, penalty=ForwardKL(100.0, 1.0), prior=Prior(1.0), solver=solver, initial_precision=0.5, **settings
    )
    x, y = data()
    design = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1)
    optimum = torch.linalg.solve(design.mT @ design + torch.eye(4), design.mT @ y).mT

    def distance() -> float:
        held = torch.cat([module.head.weight, module.head.bias[:, None]], 1).detach()
        return (held - optimum).norm().item()

    before = distance()
    for _ in range(60):
        for _ in optimizer.draws():
            evaluate(module).backward()
        optimizer.step()
    assert distance() < before / 2


# ------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("evaluation", [0, 1])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_score_that_is_not_finite_skips_the_step_of_all_families(kind: str, evaluation: int, value: float) -> None:
    """Bit for bit: running means and the inner optimizer's state are untouched as well; and the run goes on."""
    module, optimizer = mixed(kind)
    train(module, optimizer, 3)
    before = states(optimizer)
    for index in optimizer.draws():
        loss = evaluate(module)
        (loss * value if index == evaluation else loss).backward()
    optimizer.step()
    assert same(before, states(optimizer))
    assert optimizer.param_groups[0]["skipped"] == 1
    train(module, optimizer, 3, first=4)
    assert all(value.isfinite().all() for value in states(optimizer).values())
    assert not same(before, states(optimizer))


def test_a_score_that_is_not_finite_in_the_head_alone_skips_the_body_too() -> None:
    module, optimizer = mixed("full_covariance")
    train(module, optimizer, 2)
    before = module.body.weight.detach().clone()
    for _ in optimizer.draws():
        (evaluate(module) + float("nan") * module.head.bias.sum()).backward()
    optimizer.step()
    assert torch.equal(module.body.weight, before)
    assert optimizer.param_groups[0]["skipped"] == 1


@pytest.mark.parametrize("leave", ["exception", "break"])
@pytest.mark.parametrize("evaluations", [0, 1])
@pytest.mark.parametrize("kind", BLOCKS)
def test_leaving_the_draw_loop_restores_the_mean_of_every_family(kind: str, evaluations: int, leave: str) -> None:
    """Bit for bit; the next loop is not disturbed by what the broken one left."""
    module, optimizer = mixed(kind)
    train(module, optimizer, 3)  # within the inner steps of the gradient solver: the mean is the candidate's
    weights, before = [p.detach().clone() for p in module.parameters()], states(optimizer)

    def loop() -> None:
        for index in optimizer.draws():
            assert not any(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
            if index == evaluations:
                if leave == "break":
                    break
                raise KeyboardInterrupt
            evaluate(module).backward()

    if leave == "break":
        loop()
    else:
        with pytest.raises(KeyboardInterrupt):
            loop()
    assert all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
    assert same(before, states(optimizer))
    with pytest.raises(RuntimeError, match="needs scores"):
        optimizer.step()
    other, untouched = mixed(kind)
    train(other, untouched, 3)
    train(module, optimizer, 2, first=3)
    train(other, untouched, 2, first=3)
    assert same(states(optimizer), states(untouched))


@pytest.mark.parametrize("steps", [3, 10])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_run_resumed_from_its_state_goes_on_bit_for_bit(kind: str, steps: int) -> None:
    """Within the inner steps of an anchor, and just after it moved."""
    module, optimizer = mixed(kind)
    train(module, optimizer, steps)
    weights, saved = {n: p.clone() for n, p in module.state_dict().items()}, optimizer.state_dict()
    saved = torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, saved)
    train(module, optimizer, 4, first=steps)
    other, resumed = mixed(kind)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(other, resumed, 4, first=steps)
    assert same(states(optimizer), states(resumed))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.NAdam, {}), (torch.optim.Rprop, {}), (torch.optim.SGD, {"momentum": 0.9})],
)
def test_any_inner_optimizer_resumes_bit_for_bit(
    steps: int, optimizer: Callable[..., torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    """Its state does not begin at zero for all of them; a state from before the first step is one, too."""
    solver = GradientSolver(3, optimizer, 1e-4 if optimizer is torch.optim.SGD else 0.01, options)
    module, training = mixed("low_rank", solver=solver)
    train(module, training, steps)
    weights, saved = {n: p.clone() for n, p in module.state_dict().items()}, training.state_dict()
    saved = torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, saved)
    train(module, training, 5, first=steps)
    other, resumed = mixed("low_rank", solver=solver)
    train(other, resumed, 2)  # what it did before is forgotten
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(other, resumed, 5, first=steps)
    assert same(states(training), states(resumed))


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_that_are_loaded_before_the_first_step_are_its_mean(kind: str) -> None:
    """As if the optimizer had been built after they were."""
    (one, late), (two, _) = mixed(kind), mixed(kind)
    with torch.no_grad():
        for each in (one, two):
            for index, parameter in enumerate(each.parameters()):
                parameter.add_(0.1 * normal(*parameter.shape, seed=index))
    early = ProximalScore(
        two.named_parameters(), 20, families=HEADS[kind](), metric="posterior", initial_precision=0.1, paired=True
    )
    train(one, late, 3)
    train(two, early, 3)
    assert same(states(late), states(early))


def test_a_parameter_of_a_block_cannot_be_frozen_later() -> None:
    module, optimizer = mixed("full_covariance")
    module.head.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"head\.bias was frozen after .* family full_covariance"):
        next(optimizer.draws())


@pytest.mark.parametrize("evaluation", [0, 1])
def test_an_abort_names_the_parameter_of_a_block(evaluation: int) -> None:
    module, optimizer = mixed("low_rank", max_skipped_steps=2)

    def broken() -> None:
        for index in optimizer.draws():
            loss = evaluate(module)
            (loss + float("nan") * module.head.bias.sum() if index == evaluation else loss).backward()
        optimizer.step()

    broken()
    with pytest.raises(FloatingPointError, match=r"2 steps in a row .*first parameter: head\.bias"):
        broken()


def test_no_penalty_needs_no_trust_region_where_the_gradient_solver_serves_all() -> None:
    module, optimizer = mixed(
        "low_rank", solver=GradientSolver(2), penalty=NoPenalty(), max_log_precision_step=None, max_mean_step=math.inf
    )
    train(module, optimizer, 2)
    with pytest.raises(ValueError, match="max_log_precision_step is None"):  # the body has a closed form
        mixed("low_rank", penalty=NoPenalty(), max_log_precision_step=None)


def test_the_likelihood_of_the_package_trains_a_joint_head() -> None:
    """The documented loop, with a Gaussian likelihood whose noise is a point estimate beside a full-covariance head."""
    torch.manual_seed(0)
    model, likelihood = nn.Linear(3, 1), Gaussian(1.0)
    optimizer = ProximalScore(
        [*model.named_parameters(), *likelihood.named_parameters()],
        20,
        families={"weight": FullCovariance()},
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    x, y = (t.float() for t in data())
    losses = []
    for _ in range(40):
        for _ in optimizer.draws():
            loss = likelihood.nll(model(x).squeeze(-1), y[:, 0]).mean()
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    assert sum(losses[-10:]) < sum(losses[:10])
