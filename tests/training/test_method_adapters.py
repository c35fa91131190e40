"""The methods behind the loop's interface: AdamW is torch's, and both get the same number of gradient evaluations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from proxscore import config as configuration
from proxscore.inference import Categorical
from proxscore.methods import RunLength, Setup
from proxscore.methods.adamw import AdamWConfig
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.vision.image_task import ImageTask

STEPS = 40


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(10, 6, generator=generator), torch.randint(3, (10,), generator=generator)


def test_adamw_is_torchs_adamw_under_linear_warm_up_and_cosine_decay() -> None:
    ours, theirs = network(), network()
    config = AdamWConfig(lr=0.02, weight_decay=0.1, warmup=0.1)
    method = config.build(Setup(ours, RunLength(STEPS, steps_per_epoch=8, data_size=80)))

    reference = torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=0.1)
    warm = 4  # a tenth of the run
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        reference,
        [
            torch.optim.lr_scheduler.LambdaLR(reference, lambda step: (step + 1) / (warm + 1)),
            torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=STEPS - warm),
        ],
        milestones=[warm],
    )
    likelihood = Categorical()
    for step in range(STEPS):
        x, y = batch(step)
        for _ in method.draws():
            likelihood.nll(ours(x), y).mean().backward()
        method.step()
        assert method.statistics["learning_rate"] == pytest.approx(reference.param_groups[0]["lr"], abs=1e-9)

        reference.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        reference.step()
        scheduler.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_adamw_leaves_weights_and_moments_alone_in_a_step_that_is_not_finite() -> None:
    module = network()
    method = AdamWConfig(max_skipped_steps=2).build(Setup(module, RunLength(STEPS, 8, 80)))

    def step(factor: float) -> None:
        x, y = batch(0)
        for _ in method.draws():
            (Categorical().nll(module(x), y).mean() * factor).backward()
        method.step()

    step(1.0)
    before = [p.detach().clone() for p in module.parameters()]
    moments = [s["exp_avg"].clone() for s in method.state.values()]
    step(math.nan)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(method.state.values(), moments, strict=True))
    assert method.param_groups[0]["skipped"] == 1
    step(1.0)  # a good step in between: the count in a row starts anew
    step(math.inf)
    assert method.param_groups[0]["skipped"] == 2
    with pytest.raises(FloatingPointError, match="2 steps in a row"):
        step(math.nan)


@pytest.mark.parametrize(
    ("method", "evaluations"),
    [
        ({"kind": "proximal_score", "paired": True, "initial_noise": 0.02}, 2),
        ({"kind": "proximal_score", "initial_noise": 0.02}, 1),
        ({"kind": "proximal_score", "paired": True, "draws": 3, "initial_noise": 0.02}, 6),
        ({"kind": "adamw"}, 1),
    ],
    ids=["paired", "unpaired", "three pairs", "adamw"],
)
def test_the_reported_gradient_evaluations_are_the_forwards_in_training(
    method: dict[str, Any], evaluations: int, tmp_path: Path
) -> None:
    forwards = 0

    class Counting(ImageTask):
        def build_model(self) -> nn.Module:
            module = super().build_model()
            module.register_forward_hook(count)
            return module

    def count(module: nn.Module, *_: object) -> None:
        nonlocal forwards
        forwards += module.training

    config = configuration.parse(
        {
            "name": "counted",
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"width": 2, "hidden": 4}},
                "data": {"kind": "digits", "limit": 100},
            },
            "method": method,
            "training": {"epochs": 2, "batch_size": 25, "workers": 0, "device": "cpu"},
            "evaluation": {"draws": 1, "validation_draws": 1},
        }
    )
    worker = LocalWorker(tmp_path, torch.device("cpu"), lambda payloads: None, keep=1)
    results = train(config, config.method, config.training.epochs, Counting(config.task), worker)
    assert results["steps"] == 8
    assert results["evaluations"] == forwards == 8 * evaluations
    assert config.method.evaluations_per_step() == evaluations


def test_a_fused_adamw_skips_on_its_device_what_the_host_learns_of_a_step_later() -> None:
    """To the bit torch's fused AdamW that takes the good steps alone; ten bad ones in a row still end the run."""
    bad = {2, 3, 7}
    ours, theirs = network(), network()
    method = AdamWConfig(warmup=0.0).build(Setup(ours, RunLength(10**6, 8, 80)))
    for group in method.param_groups:
        group["fused"] = True  # as on a GPU
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    for step in range(10):
        x, y = batch(step)
        for _ in method.draws():
            (nn.functional.cross_entropy(ours(x), y) * (math.nan if step in bad else 1.0)).backward()
        if step == 5:
            method.found_inf = torch.zeros(1)  # as some give it
        method.step()
        assert method.undecided
        assert method.param_groups[0]["skipped"] == len([each for each in bad if each < step])
        if step not in bad:
            reference.zero_grad()
            nn.functional.cross_entropy(theirs(x), y).backward()
            reference.param_groups[0]["lr"] = method.param_groups[0]["lr"]
            reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert method.state_dict()["param_groups"][0]["skipped"] == len(bad)
    assert {state["step"].item() for state in method.state.values()} == {7.0}

    def bad_step() -> None:
        for _ in method.draws():
            (ours(batch(0)[0]).sum() * math.nan).backward()
        method.step()

    for _ in range(10):
        bad_step()
    with pytest.raises(FloatingPointError, match="10 steps in a row"):
        bad_step()
    assert method.param_groups[0]["skipped"] == len(bad) + 10
