"""``keep_mean=False`` is the same optimizer with four numbers per parameter: equal to rounding in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import Categorical, ForwardKL, Prior, ProximalScore

MODES: dict[str, dict[str, Any]] = {
    "pairs": {},
    "single draws": {"paired": False},
    "two pairs": {"draws": 2},
    "three single draws": {"draws": 3, "paired": False},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 3)).double()


def build(module: nn.Module, **settings: Any) -> ProximalScore:
    """Point estimates, a prior mean, and parameters of more numbers than one block of noise (65,536)."""
    prior = Prior(biases="point", mean={"4.weight": torch.full((3, 300), 0.1, dtype=torch.float64)})
    return ProximalScore(
        module.named_parameters(),
        200,
        prior=prior,
        penalty=ForwardKL(20.0, 2.0),
        initial_precision=0.2,
        **({"metric": "posterior", "paired": True} | settings),
    )


def backward(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    Categorical().nll(module(x), torch.randint(3, (20,), generator=generator)).mean().backward()


def train(module: nn.Module, optimizer: ProximalScore, steps: range) -> None:
    for step in steps:
        for _ in optimizer.draws():
            backward(module, step)
        optimizer.step()


def numbers(module: nn.Module, optimizer: ProximalScore) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in module.named_parameters()}
    for name, _, state in optimizer.sampled():
        found |= {f"{name}.{key}": state[key].clone() for key in ("precision", "score")}
    return found


@pytest.mark.parametrize("mode", list(MODES))
def test_training_is_the_same(mode: str) -> None:
    found = []
    for keep_mean in (True, False):
        module = network()
        optimizer = build(module, keep_mean=keep_mean, **MODES[mode])
        train(module, optimizer, range(4))
        found.append(numbers(module, optimizer))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", list(MODES))
def test_the_draws_are_the_same_and_what_is_held_is_one_number_less(mode: str) -> None:
    modules = network(), network()
    kept, spared = (build(m, keep_mean=k, **MODES[mode]) for m, k in zip(modules, (True, False), strict=True))
    for _ in zip(kept.draws(), spared.draws(), strict=True):
        torch.testing.assert_close(dict(modules[0].named_parameters()), dict(modules[1].named_parameters()))
        for module in modules:
            backward(module, 0)
    for (_, _, more), (_, _, less) in zip(kept.sampled(), spared.sampled(), strict=True):
        assert set(more) - set(less) == {"mean"}


def test_an_exception_among_the_draws_leaves_the_mean() -> None:
    module = network()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = build(module, keep_mean=False)

    def fail_at_the_second_draw() -> None:
        for index in optimizer.draws():
            backward(module, 0)
            if index == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_at_the_second_draw()
    torch.testing.assert_close({n: p.detach() for n, p in module.named_parameters()}, before, rtol=0, atol=1e-14)


def test_a_saved_run_continues_bit_for_bit() -> None:
    module = network()
    optimizer = build(module, keep_mean=False)
    train(module, optimizer, range(2))
    weights, state = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    again = network()
    resumed = build(again, keep_mean=False)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for each, its in ((module, optimizer), (again, resumed)):
        train(each, its, range(2, 4))
    for name, value in numbers(module, optimizer).items():
        assert torch.equal(value, numbers(again, resumed)[name]), name
