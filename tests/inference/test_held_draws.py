"""A single draw that stays in the weights until the step gives the step of one that was taken, and is never left behind."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference import (
    ForwardKL,
    Kronecker,
    NoPenalty,
    Prior,
    ProximalScore,
    Quadratic,
    ReverseKL,
    Schedule,
)
from proxscore.inference.convergence import RunawayError
from proxscore.inference.parts.shards import Shards
from proxscore.posterior import Posterior

ULPS = 200


def network() -> nn.Sequential:
    """Two weights that are large enough to be compiled for, and small ones."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(131, 129), nn.Tanh(), nn.Linear(129, 128), nn.Tanh(), nn.Linear(128, 3))


def loss(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(20, 131, generator=generator), torch.randint(0, 3, (20,), generator=generator)
    return nn.functional.cross_entropy(model(x), y)


def after(
    hold: bool, steps: int = 10, bad: tuple[int, ...] = (3,), **settings: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """All numbers after some steps, of which one is skipped, and the last one's statistics."""
    model = network()
    optimizer = ProximalScore(model.named_parameters(), 200, **settings)
    optimizer.hold_draw = hold
    for step in range(steps):
        for _ in optimizer.draws():
            (loss(model, step) * (math.nan if step in bad else 1)).backward()
        optimizer.monitor = step == steps - 1
        optimizer.step()
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        found |= {f"{number}.{name}": value for name, value in state.items()}
    return found, optimizer.statistics


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "prior mean": {"prior": Prior(mean={"0.weight": torch.full((129, 131), 0.01)}, biases="point")},
    "posterior's metric": {"metric": "posterior", "initial_precision": 0.1},
    "warm-up from nothing": {"penalty": ForwardKL(50.0, precision_schedule=Schedule("linear", length=3))},
    "prior that enters": {"prior_schedule": Schedule("constant", warmup=5.0)},
    "reverse": {"penalty": ReverseKL(50.0)},
    "quadratic": {"penalty": Quadratic(50.0), "clip_norm": 0.5},
    "none": {"penalty": NoPenalty(), "max_log_precision_step": 0.1, "metric": "posterior"},
    "with a block": {"families": {"2.weight": Kronecker()}, "metric": "posterior", "initial_precision": 0.1},
    "pairs, which are not held": {"paired": True},
    "two draws, which are not held": {"draws": 2},
    "no separate mean, where nothing is held": {"keep_mean": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_held_draw_gives_the_same_step(name: str) -> None:
    """To the bit where nothing is compiled, with what is watched; the ratio's statistics to rounding."""
    (held, statistics), (plain, expected) = (after(hold, fused=False, **SETTINGS[name]) for hold in (True, False))
    assert held.keys() == plain.keys()
    for key, value in plain.items():
        assert torch.equal(held[key], value), key
    assert statistics == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["default", "prior mean", "posterior's metric", "warm-up from nothing"])
def test_a_held_draw_gives_the_same_compiled_step(name: str) -> None:
    (held, _), (plain, _) = (after(hold, fused=hold, **SETTINGS[name]) for hold in (True, False))
    for key, value in plain.items():
        if value.is_floating_point() and not key.endswith("probes"):
            difference = (held[key] - value).abs().max() / value.abs().max().clamp(min=1e-9)
            assert difference.item() <= ULPS * 2**-24, key


def test_a_step_with_a_closure_holds_its_draw_and_is_the_loop() -> None:
    def trained(closed: bool) -> nn.Module:
        model = network()
        optimizer = ProximalScore(model.named_parameters(), 200)
        seen: list[bool] = []

        def closure() -> Tensor:
            value = loss(model, len(seen))
            value.backward()
            seen.append(optimizer.drawing)
            return value

        for _ in range(4):
            if closed:
                assert optimizer.step(closure).isfinite()
            else:
                for _ in optimizer.draws():
                    closure()
                assert not optimizer.drawing
                optimizer.step()
        assert seen == [True] * 4
        assert not optimizer.hold_draw
        return model

    for one, other in zip(trained(True).parameters(), trained(False).parameters(), strict=True):
        assert torch.equal(one, other)


def held(**settings: Any) -> tuple[nn.Module, ProximalScore, list[Tensor]]:
    """A network with a draw in its weights that waits for the step, and its means."""
    model = network()
    optimizer = ProximalScore(model.named_parameters(), 200, **settings)
    means = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.hold_draw = True
    for _ in optimizer.draws():
        loss(model, 0).backward()
    assert not any(torch.equal(p, mean) for p, mean in zip(model.parameters(), means, strict=True))
    return model, optimizer, means


def test_while_a_draw_is_held_nothing_takes_it_for_the_mean() -> None:
    model, optimizer, _ = held()
    assert optimizer.drawing
    with pytest.raises(RuntimeError, match="call step"):
        optimizer.state_dict()
    with pytest.raises(ConfigError, match="within it the weights are a draw"):
        Posterior.of(model, optimizer)
    optimizer.step()
    assert not optimizer.drawing
    for parameter in model.parameters():
        assert torch.equal(parameter, optimizer.state[parameter]["mean"])


def spoiled(model: nn.Module, optimizer: ProximalScore) -> None:
    model[0].weight.grad.mul_(2)
    with pytest.raises(RuntimeError, match="gradients were changed"):
        optimizer.step()


def skipped(model: nn.Module, optimizer: ProximalScore) -> None:
    optimizer.found_inf = True
    optimizer.step()


def given_up(model: nn.Module, optimizer: ProximalScore) -> None:
    optimizer.found_inf, optimizer.max_skipped_steps = True, 1
    with pytest.raises(FloatingPointError):
        optimizer.step()


def drawn_again(model: nn.Module, optimizer: ProximalScore) -> None:
    loop = optimizer.draws()
    next(loop)
    loop.close()


def interrupted(model: nn.Module, optimizer: ProximalScore) -> None:
    def closure() -> None:
        loss(model, 0).backward()
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)


def failed(model: nn.Module, optimizer: ProximalScore) -> None:
    optimizer.found_inf = torch.zeros(2)  # no answer
    with pytest.raises(RuntimeError):
        optimizer.step()


def failed_halfway(model: nn.Module, optimizer: ProximalScore) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "_step_from_draw", lambda *_: torch.zeros(2).item())
        with pytest.raises(RuntimeError):
            optimizer.step()


def rewritten(model: nn.Module, optimizer: ProximalScore) -> None:
    with torch.no_grad():
        model[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="weights were changed"):
        optimizer.step()


def loaded(model: nn.Module, optimizer: ProximalScore) -> None:
    optimizer.load_state_dict(ProximalScore(network().named_parameters(), 200).state_dict())
    assert not optimizer.drawing


ENDS = [spoiled, skipped, given_up, drawn_again, interrupted, failed, failed_halfway, rewritten, loaded]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest.mark.parametrize("fused", [False, True])
def test_whatever_ends_a_held_draw_the_weights_are_the_mean_again(
    end: Callable[[nn.Module, ProximalScore], None], fused: bool
) -> None:
    model, optimizer, means = held(fused=fused)
    end(model, optimizer)
    for parameter, mean in zip(model.parameters(), means, strict=True):
        assert torch.equal(parameter, mean)


def test_weights_that_are_loaded_while_a_draw_is_held_stay_with_the_state_that_is_loaded() -> None:
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    saved = copy.deepcopy(ProximalScore(other.named_parameters(), 200).state_dict())
    model, optimizer, _ = held()
    model.load_state_dict(other.state_dict())
    optimizer.load_state_dict(saved)
    for _ in optimizer.draws():
        loss(model, 0).backward()
    optimizer.found_inf = True
    optimizer.step()
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_where_a_group_runs_away_the_others_weights_are_their_means() -> None:
    model = network()
    groups = [{"params": list(layer.named_parameters(str(number)))} for number, layer in enumerate(model)][::2]
    optimizer = ProximalScore(groups, 200)
    optimizer.hold_draw = True
    for _ in optimizer.draws():
        loss(model, 0).backward()
    optimizer.state[model[0].weight]["mean"].fill_(math.inf)
    with pytest.raises(RunawayError):
        optimizer.step()
    for parameter in model[2:].parameters():
        assert torch.equal(parameter, optimizer.state[parameter]["mean"])


def test_a_step_is_skipped_where_all_that_is_sampled_is_frozen() -> None:
    model = network()
    optimizer = ProximalScore(model.named_parameters(), 200, prior=Prior(point=("4.*",)))
    model[:4].requires_grad_(False)
    optimizer.hold_draw = True
    for found in (False, True):
        for _ in optimizer.draws():
            loss(model, 0).backward()
        optimizer.found_inf = found
        optimizer.step()
    assert optimizer.param_groups[0]["skipped"] == 1
