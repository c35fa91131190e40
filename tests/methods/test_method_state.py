"""All state of a method is in its checkpoints, whatever it holds; and a draw loop that breaks leaves the weights alone."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from method_problems import Trial, moons_trial, section

from proxscore.posterior import Posterior
from proxscore.training.loop import checkpoint

METHODS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd"},
    "elbo": {"kind": "elbo"},
    "elbo, point biases, two draws": {"kind": "elbo", "draws": 2, "prior": {"biases": "point"}},
    "ivon": {"kind": "ivon"},
    "ivon, two draws": {"kind": "ivon", "draws": 2},
    "mc_dropout": {"kind": "mc_dropout", "of": {"kind": "sgd"}},
    "sgld": {"kind": "sgld", "cycles": 2, "samples": 4, "exploration": 0.5},
    "sghmc": {"kind": "sghmc", "cycles": 2, "samples": 4, "exploration": 0.5},
    "swag": {"kind": "swag", "collect_every": 0.25, "rank": 3, "start": 0.5},
}
STEPS = 24


def tensors(posterior: Posterior) -> dict[str, torch.Tensor]:
    """Everything that a posterior would save."""
    return posterior.gather().pack()[1]


def trial(name: str, seed: int = 0) -> Trial:
    return moons_trial(section(**METHODS[name]), STEPS, dropout=0.1, seed=seed)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_continued_from_a_checkpoint_is_bit_for_bit_the_run_that_did_not_stop(name: str, tmp_path: Path) -> None:
    whole, broken = trial(name).go(), trial(name)
    broken.go(STEPS // 2 + 7)
    snapshot = checkpoint.Snapshot(broken.module, broken.method, {"step": broken.taken})
    checkpoint.save(tmp_path, snapshot)
    torch.manual_seed(1)
    torch.rand(5)  # the state of the global generator is of no account
    resumed = trial(name, seed=0)
    with torch.no_grad():
        for parameter in resumed.module.parameters():
            parameter.normal_()
    snapshot = checkpoint.Snapshot(resumed.module, resumed.method, {"step": 0})
    checkpoint.load(tmp_path, snapshot)
    resumed.taken = snapshot.progress["step"]
    resumed.go()
    expected, found = tensors(whole.posterior()), tensors(resumed.posterior())
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    assert resumed.method.statistics == whole.method.statistics


@pytest.mark.parametrize("name", METHODS)
def test_an_exception_in_the_draw_loop_leaves_weights_and_the_next_steps_as_they_would_be(name: str) -> None:
    whole, broken = trial(name).go(4), trial(name).go(3)
    before = [p.detach().clone() for p in broken.module.parameters()]
    with contextlib.suppress(InterruptedError):
        for _ in broken.method.draws():
            raise InterruptedError
    assert all(torch.equal(a, b) for a, b in zip(before, broken.module.parameters(), strict=True))
    broken.go(1)
    expected, found = tensors(whole.posterior()), tensors(broken.posterior())
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_is_not_finite_changes_nothing_and_too_many_raise(name: str) -> None:
    broken = trial(name).go(3)
    before = tensors(broken.posterior())

    def bad() -> None:
        inputs, targets = broken.rows
        for _ in broken.method.draws():
            (broken.likelihood.nll(broken.module(inputs), targets).mean() * math.nan).backward()
        broken.method.step()

    bad()
    after = tensors(broken.posterior())
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    broken.go(1)
    assert broken.method.param_groups[0]["skipped"] == 1
    assert all(value.isfinite().all() for value in tensors(broken.posterior()).values())
    for _ in range(9):
        bad()
    with pytest.raises(FloatingPointError, match="10 steps in a row"):
        bad()
