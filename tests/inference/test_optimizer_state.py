"""State: saved, loaded into a new model and optimizer, and continued bit for bit."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from proxscore.inference import (
    Categorical,
    ForwardKL,
    FullCovariance,
    GradientSolver,
    Kronecker,
    LowRank,
    Mixture,
    Prior,
    ProximalScore,
    Schedule,
)

N = 40


def build(seed: int, **settings: Any) -> tuple[nn.Sequential, ProximalScore]:
    """A network with sampled, flat and point-estimated parameters and a prior mean; two groups."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    groups = [
        {"params": list(module[:3].named_parameters()), "momentum": 0.5},
        {"params": list(module[3].named_parameters("3"))},
    ]
    prior = Prior(scale=0.5, biases="flat", norms="point", mean={"3.weight": torch.full((3, 6), 0.2)})
    penalty = ForwardKL(50.0, 2.0, Schedule("linear", length=30), Schedule("cosine", length=30, warmup=3))
    return module, ProximalScore(
        groups,
        N,
        prior=prior,
        penalty=penalty,
        **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | {"seed": seed} | settings),
    )


def train(module: nn.Module, optimizer: ProximalScore, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(10, 4, generator=generator), torch.randint(3, (10,), generator=generator)
        for _ in optimizer.draws():
            loss = Categorical().nll(module(x), y).mean()
            (loss * float("nan") if step == 2 else loss).backward()  # one skipped step is part of the history
        optimizer.step()


def numbers(module: nn.Module, optimizer: ProximalScore) -> dict[str, Tensor]:
    result = {name: parameter.detach() for name, parameter in module.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        result |= {f"{index}.{name}": tensor for name, tensor in state.items()}
    counters = [[g["step"], g["momentum_product"], g["skipped"], g["seed"]] for g in optimizer.param_groups]
    return result | {"counters": torch.tensor(counters)}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


OTHER_FAMILIES: list[dict[str, Any]] = [
    {"families": {"3.*": FullCovariance()}},
    {"families": {"0.*": LowRank(2), "3.*": Mixture(2)}, "paired": False},
    {"families": {"0.weight": Kronecker()}, "solver": GradientSolver(3)},  # step 4 lies within an anchor's inner steps
    {"solver": GradientSolver(2, torch.optim.SGD, 1e-3, {"momentum": 0.9}), "draws": 2},
]


@pytest.mark.parametrize("settings", [{}, {"paired": False}, {"draws": 2}, *OTHER_FAMILIES])
def test_a_state_dict_through_a_file_continues_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    module, optimizer = build(0, **settings)
    train(module, optimizer, 0, 4)
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(module, optimizer, 4, 8)

    other, resumed = build(1, **settings)  # other weights, other seed: everything must come from the file
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(saved["module"])
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, 4, 8)
    assert_equal(numbers(module, optimizer), numbers(other, resumed))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_state_dict_continues_bit_for_bit(tmp_path: Path) -> None:
    """torch.distributed.checkpoint.state_dict names the state by parameter, and stores it through DCP."""
    module, optimizer = build(0)
    train(module, optimizer, 0, 4)
    model_state, optimizer_state = get_state_dict(module, optimizer)
    torch.distributed.checkpoint.save(
        {"module": model_state, "optimizer": optimizer_state}, checkpoint_id=tmp_path, no_dist=True
    )
    train(module, optimizer, 4, 8)

    other, resumed = build(1)
    model_state, optimizer_state = get_state_dict(other, resumed)
    held = {"module": model_state, "optimizer": optimizer_state}
    torch.distributed.checkpoint.load(held, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(other, resumed, model_state_dict=held["module"], optim_state_dict=held["optimizer"])
    train(other, resumed, 4, 8)
    assert_equal(numbers(module, optimizer), numbers(other, resumed))


def test_saving_does_not_disturb_the_run() -> None:
    runs = []
    for save in (False, True):
        module, optimizer = build(0)
        for step in range(5):
            train(module, optimizer, step, step + 1)
            if save:
                get_state_dict(module, optimizer)
                optimizer.state_dict()
        runs.append(numbers(module, optimizer))
    assert_equal(*runs)


def test_a_state_of_another_model_is_refused() -> None:
    _, optimizer = build(0)
    other = ProximalScore(nn.Linear(4, 3).named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    with pytest.raises(ValueError, match="parameter group"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("settings", [{}, {"keep_mean": False}, {"draws": 2}, *OTHER_FAMILIES])
def test_a_copy_of_module_and_optimizer_goes_on_as_they_do(settings: dict[str, Any]) -> None:
    module, optimizer = build(0, **settings)
    train(module, optimizer, 0, 4)
    other, copied = copy.deepcopy((module, optimizer))
    train(module, optimizer, 4, 8)
    assert not torch.equal(next(other.parameters()), next(module.parameters()))
    train(other, copied, 4, 8)
    assert_equal(numbers(module, optimizer), numbers(other, copied))


def test_an_optimizer_is_not_copied_within_its_loop() -> None:
    module, optimizer = build(0)
    for _ in optimizer.draws():
        with pytest.raises(RuntimeError, match=r"copied after step\(\)"):
            copy.deepcopy(optimizer)
        module(torch.ones(2, 4)).sum().backward()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"draws": 2}),
        ({"draws": 2}, {}),
        ({}, {"keep_mean": False}),
        ({"keep_mean": False}, {}),
        ({}, {"paired": False}),
    ],
)
def test_a_state_of_other_draws_or_without_a_mean_is_taken_over(before: dict[str, Any], after: dict[str, Any]) -> None:
    module, optimizer = build(0, **before)
    train(module, optimizer, 0, 4)
    other, resumed = build(1, **after)
    other.load_state_dict(module.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    for (_, _, ours), (_, _, theirs) in zip(optimizer.sampled(), resumed.sampled(), strict=True):
        assert torch.equal(ours["precision"], theirs["precision"])
    train(other, resumed, 4, 6)
    assert all(parameter.isfinite().all() for parameter in other.parameters())


@pytest.mark.parametrize(
    "after", [{"family": LowRank(2)}, {"families": {"3.*": FullCovariance()}}, {"solver": GradientSolver(2)}]
)
def test_a_state_of_another_family_or_solver_is_refused_by_name(after: dict[str, Any]) -> None:
    module, optimizer = build(0)
    train(module, optimizer, 0, 2)
    _, other = build(0, **after)
    with pytest.raises(ValueError, match=r"the saved state of \d\.weight holds .*, these settings need"):
        other.load_state_dict(optimizer.state_dict())
    _, point = build(0, families={"3.*": FullCovariance()})
    with pytest.raises(ValueError, match=r"the saved state of"):
        optimizer.load_state_dict(point.state_dict())


def test_the_running_score_is_unbiased_under_a_momentum_that_changes() -> None:
    """Of a constant gradient it is that gradient, as OneCycleLR changes the momentum from step to step."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    prior = Prior(biases="flat", norms="flat")
    optimizer = ProximalScore(
        [("layer.bias", parameter)],
        N,
        metric="posterior",
        prior=prior,
        max_mean_step=math.inf,
        max_log_precision_step=None,
        initial_precision=0.1,
        paired=True,
    )
    moved = []
    for step in range(12):
        optimizer.param_groups[0]["momentum"] = (0.95, 0.7, 0.85, 0.9)[step % 4]
        before = parameter.detach().clone()
        for _ in optimizer.draws():
            parameter.sum().backward()
        optimizer.step()
        moved.append((parameter.detach() - before).mean().item())
    # The mean moves by -N g / (Lambda (r + 2 kappa_m)): the precision hardly changes, so neither does the step.
    assert moved == pytest.approx([moved[0]] * 12, rel=0.02)
