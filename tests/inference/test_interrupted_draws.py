"""An interrupt or an error at any moment leaves the mean in the weights, and an optimizer that goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from proxscore.inference import Categorical, FullCovariance, ProximalScore, noise
from proxscore.inference.interrupts import deferred_interrupts


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)).double()


def loop(module: nn.Module, optimizer: ProximalScore, steps: int = 1) -> None:
    for _ in range(steps):
        for _ in optimizer.draws():
            Categorical().nll(module(torch.ones(5, 3).double()), torch.tensor([0, 1, 0, 1, 1])).mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("keep_mean", "at"), [*((True, at) for at in (1, 4, 6)), *((False, at) for at in range(1, 13))]
)
@pytest.mark.parametrize("what", ["interrupt", "error"])
def test_the_mean_is_in_the_weights_after_an_end_within_sampling(
    keep_mean: bool, what: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise of the at-th piece fails, or Ctrl-C comes while it is made, when half of a draw is in the weights.

    There are six pieces in a draw, and as many in its reflection where the mean is not kept.
    """
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(), 100, keep_mean=keep_mean, metric="posterior", initial_precision=0.1, paired=True
    )
    loop(module, optimizer, 2)
    mean = [p.detach().clone() for p in module.parameters()]
    original, calls = noise.NormalStream.pieces, 0

    def failing(self: Any, *arguments: Any) -> Iterator[Any]:
        nonlocal calls
        calls += 1
        if calls == at:
            if what == "error":
                raise MemoryError("no room for the noise")
            signal.raise_signal(signal.SIGINT)
        yield from original(self, *arguments)

    monkeypatch.setattr(noise.NormalStream, "pieces", failing)
    with pytest.raises((KeyboardInterrupt, MemoryError)):
        loop(module, optimizer)
    monkeypatch.undo()
    for parameter, before in zip(module.parameters(), mean, strict=True):
        torch.testing.assert_close(parameter.detach(), before, rtol=1e-12, atol=1e-14)
    loop(module, optimizer)


def test_an_error_before_the_first_draw_leaves_an_optimizer_that_goes_on() -> None:
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(),
        100,
        families={"2.*": FullCovariance()},
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    loaded = [torch.full_like(p, 0.5) for p in module.parameters()]
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), loaded, strict=True):
            parameter.copy_(value)
    module[2].bias.requires_grad_(False)
    for _ in range(2):  # not "draws() within draws()" the second time
        with pytest.raises(RuntimeError, match=r"2\.bias was frozen after the optimizer was built"):
            loop(module, optimizer)
    assert all(torch.equal(p, value) for p, value in zip(module.parameters(), loaded, strict=True))
    module[2].bias.requires_grad_(True)
    loop(module, optimizer)


def test_interrupts_wait_for_the_end_of_the_context() -> None:
    done = []

    def work() -> None:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
