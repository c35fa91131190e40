"""A step that begins before the host knows whether it is skipped is the step that the host decides on, and waits for nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from far_device import FarDevice, WaitError
from torch import Tensor, nn

from proxscore.inference import ForwardKL, Prior, ProximalScore, undecided
from proxscore.inference.convergence import KEY, RunawayError, shard_probes
from proxscore.posterior import Posterior

STEPS = 14
BAD = {2, 3, 7}  # steps whose scores are not finite


class Scaled(nn.Module):
    """Weights that are sampled, and a noise level that is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(131, 129), nn.Tanh(), nn.Linear(129, 128), nn.Tanh(), nn.Linear(128, 1))
        self.log_noise = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(3))

    def loss(self, step: int, bad: bool) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(20, 131, generator=generator), torch.randn(20, generator=generator)
        error = self.layers(x)[:, 0] + self.shift.sum() - y
        loss = (error / self.log_noise.exp()).square().mean() / 2 + self.log_noise
        return loss * math.nan if bad else loss


def built(model: nn.Module, **settings: Any) -> ProximalScore:
    prior = Prior(1.0, point=("*log_noise", "shift"), mean={"layers.0.bias": torch.full((129,), 0.1)})
    return ProximalScore(model.named_parameters(), 200, **{"prior": prior, **settings})


def trained(ahead: bool, **settings: Any) -> tuple[Scaled, ProximalScore]:
    model = Scaled()
    optimizer = built(model, **{name: value for name, value in settings.items() if name != "hold"})
    optimizer.run_ahead, optimizer.hold_draw = ahead, "hold" in settings
    for step in range(STEPS):
        for number in optimizer.draws():
            model.loss(step, step in BAD and number == 0).backward()
        optimizer.monitor = step == 5
        optimizer.step()
        assert (optimizer._undecided is not None) == (ahead and step != 5)
    return model, optimizer


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"fused": False},
    "compiled": {"fused": True},
    "held": {"fused": False, "hold": True},
    "held, compiled": {"fused": True, "hold": True},
    "pairs": {"paired": True, "draws": 2, "fused": False},
    "no separate mean": {"keep_mean": False},
    "posterior's metric": {"metric": "posterior", "penalty": ForwardKL(30.0), "paired": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_the_step_that_the_host_decides_on(name: str) -> None:
    """To the bit: weights, state with what is watched, and counts, with three steps of fourteen skipped."""
    (model, ahead), (other, waiting) = (trained(ahead, **SETTINGS[name]) for ahead in (True, False))
    found, expected = ahead.state_dict(), waiting.state_dict()
    assert ahead.param_groups[0]["skipped"] == len(BAD)
    for own, others in zip(found["param_groups"], expected["param_groups"], strict=True):
        assert own == others
    assert found["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert state.keys() == found["state"][number].keys()
        for key, value in state.items():
            assert torch.equal(found["state"][number][key], value), key
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
    assert ahead.statistics == waiting.statistics
    assert any(state[KEY].count_nonzero() for state in found["state"].values() if KEY in state)


def test_too_many_skipped_steps_end_the_run_one_step_later_and_name_the_parameter() -> None:
    model = Scaled()
    optimizer = built(model, max_skipped_steps=3)
    optimizer.run_ahead = True
    for step in range(4):
        for _ in optimizer.draws():
            model.loss(step, bad=False).backward()
            model.layers[2].weight.grad.fill_(math.inf)  # type: ignore[union-attr]
        if step == 3:
            with pytest.raises(FloatingPointError, match=r"3 steps in a row .*first parameter: layers\.2\.weight"):
                optimizer.step()
        else:
            optimizer.step()
    assert optimizer.param_groups[0]["skipped"] == 3
    with pytest.raises(RuntimeError, match="needs scores"):
        optimizer.step()


def test_a_state_and_a_copy_know_of_a_step_that_was_skipped_last() -> None:
    model = Scaled()
    optimizer = built(model)
    optimizer.run_ahead = True
    for step, bad in enumerate((False, True)):
        for _ in optimizer.draws():
            model.loss(step, bad).backward()
        optimizer.step()
    assert optimizer.param_groups[0]["skipped"] == 0  # not known yet
    assert copy.deepcopy((model, optimizer))[1].param_groups[0]["skipped"] == 1
    state = optimizer.state_dict()
    assert state["param_groups"][0]["skipped"] == 1
    assert state["param_groups"][0]["momentum_product"] == pytest.approx(0.9)
    steps = [held["step"].item() for held in state["state"].values() if "step" in held]
    assert steps
    assert set(steps) == {0.0, 1.0}  # noise levels count none


@pytest.mark.parametrize("by", ["the next step", "its posterior"])
def test_a_posterior_that_runs_away_is_refused_one_step_later_or_when_it_is_taken(by: str) -> None:
    model = Scaled()
    optimizer = built(model)
    optimizer.run_ahead = True
    for _ in optimizer.draws():
        model.loss(0, bad=False).backward()
    optimizer.state[model.layers[2].weight]["mean"].fill_(math.inf)
    optimizer.step()
    if by == "its posterior":
        with pytest.raises(RunawayError, match=r"layers\.2\.weight"):
            Posterior.of(model, optimizer)
        return
    for _ in optimizer.draws():
        model.loss(1, bad=False).backward()
    with pytest.raises(RunawayError, match=r"layers\.2\.weight"):
        optimizer.step()


def test_an_answer_with_a_dimension_is_the_answer() -> None:
    """As torch's ShardedGradScaler and others give it."""
    model = Scaled()
    optimizer = built(model, max_skipped_steps=3)
    optimizer.run_ahead = True
    for step in range(4):
        for _ in optimizer.draws():
            model.loss(step, bad=False).backward()
        optimizer.found_inf = torch.tensor([float(step == 1)])
        optimizer.step()
    optimizer.settle()
    assert optimizer.param_groups[0]["skipped"] == 1


def test_a_state_that_is_loaded_is_not_blamed_for_the_one_before() -> None:
    model = Scaled()
    optimizer = built(model)
    optimizer.run_ahead = True
    good = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for spoil in (True, False):
        for _ in optimizer.draws():
            model.loss(0, bad=False).backward()
        if spoil:
            optimizer.state[model.layers[2].weight]["mean"].fill_(math.inf)
        optimizer.step()
        if spoil:
            model.load_state_dict(good[0])
            optimizer.load_state_dict(good[1])
    optimizer.settle()


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU without numbers; what has arrived from it says that all is well."""
    asked: list[Tensor] = []

    class Arrived:
        def __init__(self, numbers: Tensor) -> None:
            asked.append(numbers)
            self._answer = numbers.dtype == torch.bool

        def values(self) -> bool:
            return self._answer

    for module in (undecided, shard_probes):
        monkeypatch.setattr(module, "Fetched", Arrived)
    with FarDevice():
        yield


def backward(model: nn.Module) -> None:
    """What a backward pass leaves; torch's own engine needs a real device."""
    for parameter in model.parameters():
        gradient = torch.ones_like(parameter)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


@pytest.mark.parametrize("name", ["plain", "held", "pairs", "no separate mean", "posterior's metric"])
def test_a_step_on_a_gpu_waits_for_nothing(far: None, name: str) -> None:
    """On tensors that have no numbers to wait for, over more steps than lie between two checks."""
    model = nn.Sequential(nn.Linear(131, 129, device="cuda"), nn.Tanh(), nn.Linear(129, 1, device="cuda"))
    settings = {"prior": Prior(1.0, point=("2.bias",)), "initial_precision": 1.0} | SETTINGS[name]
    hold = settings.pop("hold", False)
    optimizer = ProximalScore(model.named_parameters(), 200, **settings)
    optimizer.hold_draw = hold
    for _ in range(20):
        for _ in optimizer.draws():
            backward(model)
        optimizer.step()


def test_a_wait_for_a_gpu_is_found_out(far: None) -> None:
    for wait in (bool, float, Tensor.cpu):
        with pytest.raises(WaitError):
            wait(torch.zeros((), device="cuda"))  # type: ignore[operator]
    with pytest.raises(WaitError):
        torch.zeros(()).to("cuda")
    model = nn.Linear(3, 1, device="cuda")
    optimizer = ProximalScore(model.named_parameters(), 200, initial_precision=1.0)
    optimizer.monitor = True
    for _ in optimizer.draws():
        backward(model)
    with pytest.raises(WaitError):
        optimizer.step()


def test_an_answer_on_another_device_than_the_weights_is_waited_for(far: None) -> None:
    """As of weights that are offloaded to the CPU: there is no choosing between numbers by one that lies elsewhere."""
    model = nn.Linear(3, 1)
    optimizer = ProximalScore(model.named_parameters(), 200, initial_precision=1.0)
    for _ in optimizer.draws():
        backward(model)
    optimizer.found_inf = torch.zeros((), device="cuda")
    with pytest.raises(WaitError):
        optimizer.step()
