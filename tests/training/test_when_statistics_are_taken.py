"""What a step does to the precisions is counted for the steps that are reported, and is that of the step it is said of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from proxscore import config as configuration
from proxscore.inference import ProximalScore
from proxscore.inference.monitor import Monitor
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.fit import fit
from proxscore.vision.image_task import ImageTask

Records = dict[int, dict[str, float]]
STATISTICS = {"log_precision_mean", "log_precision_min", "log_precision_max", "ratio_mean", "kappa_mean"}


def records(
    folder: Path, interval: float, method: dict[str, Any] | None = None, **training: Any
) -> tuple[Records, Any]:
    """Of every step, as the driver gets them, and what is left."""
    config = configuration.parse(
        {
            "name": "small",
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}},
                "data": {"kind": "digits", "limit": 200},
            },
            "training": {"epochs": 3, "batch_size": 50, "workers": 0, "device": "cpu", "checkpoint_every": 10}
            | training,
            "evaluation": {"draws": 2, "validation_draws": 1},
            "tracking": {"interval": interval},
            "method": method or {},
        }
    )
    found: Records = {}
    worker = LocalWorker(
        folder,
        torch.device("cpu"),
        lambda payloads: found.update({int(record["step"]): record for record in payloads[0]["records"]}),
        keep=1,
    )
    return found, fit(config, config.method, 3, ImageTask(config.task), worker)


def test_they_are_taken_where_a_report_is_due_and_are_those_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    class Counted(Monitor):
        def __init__(self) -> None:
            nonlocal taken
            taken += 1
            super().__init__()

    monkeypatch.setattr("proxscore.inference.optimizer.Monitor", Counted)
    every, _ = records(tmp_path / "every", interval=0)
    assert taken == 12
    taken = 0
    rare, fitted = records(tmp_path / "rare", interval=1e9)
    assert taken == 3  # validations
    assert list(every) == list(rare) == list(range(1, 13))
    for step in every:
        assert every[step]["train/nll"] == rare[step]["train/nll"]
        held = STATISTICS & rare[step].keys()
        assert held == (STATISTICS if step in (4, 8, 12) else set())
        assert {name: rare[step][name] for name in held} == {name: every[step][name] for name in held}
    logs = torch.cat([p.flatten().double().log() for p in fitted.posterior().precision.values()])
    assert rare[12]["log_precision_mean"] == pytest.approx(logs.mean().item(), rel=1e-5)
    assert rare[12]["log_precision_min"] == pytest.approx(logs.min().item(), rel=1e-6)
    assert rare[12]["log_precision_max"] == pytest.approx(logs.max().item(), rel=1e-6)


def spoil_steps(monkeypatch: pytest.MonkeyPatch, calls_to_spoil: set[int]) -> None:
    """Let the network's outputs be nan in these calls in training, counted from one."""
    original = ImageTask.build_model

    def build(task: ImageTask, device: torch.device | None = None) -> Any:
        module = original(task, device)
        calls = 0

        def spoil(module: Any, inputs: Any, outputs: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += module.training
            return outputs * math.nan if module.training and calls in calls_to_spoil else outputs

        module.register_forward_hook(spoil)
        return module

    monkeypatch.setattr(ImageTask, "build_model", build)


def test_a_skipped_step_has_no_statistics_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_steps(monkeypatch, {9, 10})
    found, _ = records(tmp_path, interval=0)
    skipped = [
        step
        for step in found
        if found[step]["train/skipped_steps"] > found.get(step - 1, found[1])["train/skipped_steps"]
    ]
    assert len(skipped) == 1
    assert not STATISTICS & found[skipped[0]].keys()


@pytest.mark.parametrize("method", [{"kind": "proximal_score", "initial_noise": 0.02}, {"kind": "adamw"}])
def test_outcomes_that_are_read_a_step_later_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    """As on a GPU, where the host launches the next step before it reads what the last one found."""
    spoil_steps(monkeypatch, {5, 6, 9})
    at_once, fitted = records(tmp_path / "at once", 1e9, method)
    monkeypatch.setattr("proxscore.training.loop.fit.STEPS_AHEAD", {})
    monkeypatch.setattr(ProximalScore, "run_ahead", True)
    later, also = records(tmp_path / "later", 1e9, method)
    skipped = [row["train/skipped_steps"] for row in at_once.values()]
    assert skipped == [0, 0, 0, 0, 1, 2, 2, 2, 3, 3, 3, 3]
    assert repr(at_once) == repr(later)  # with nan, which equals nothing
    for one, other in zip(fitted.run.module.parameters(), also.run.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_report_comes_soon_where_outcomes_are_read_a_step_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that always says so: a step's word is read in the next one, and the report comes after the third."""
    monkeypatch.setattr("proxscore.training.loop.fit.STEPS_AHEAD", {})
    found, _ = records(tmp_path, 1e-9)
    assert list(found) == list(range(1, 13))
    assert [step for step in found if found[step].keys() >= STATISTICS] == [3, 4, 7, 8, 11, 12]
