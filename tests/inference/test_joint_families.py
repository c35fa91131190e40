"""Several families in one model: what each leaves alone, and what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from block_problems import BLOCKS, HEADS, data, evaluate, mixed, normal, same, states, train
from torch import Tensor, nn

from proxscore.inference import (
    ForwardKL,
    FullCovariance,
    Gaussian,
    GradientSolver,
    NoPenalty,
    Prior,
    ProximalScore,
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
    """Of a linear regression (unit noise, unit prior), in 200 steps at least half of the way; of six seeds of a mixture, the
    slowest came 70 % of it."""
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
    for _ in range(200):
        for _ in optimizer.draws():
            evaluate(module).backward()
        optimizer.step()
    assert distance() < before / 2


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
