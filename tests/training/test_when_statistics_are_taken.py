"""What a step does to the precisions is counted for the steps that are reported, and is that of the step it is said of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from proxscore import config as configuration
from proxscore.inference.monitor import Monitor
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.fit import fit
from proxscore.vision.image_task import ImageTask

Records = dict[int, dict[str, float]]
STATISTICS = {"log_precision_mean", "log_precision_min", "log_precision_max", "ratio_mean", "kappa_mean"}


def records(folder: Path, interval: float, **training: Any) -> tuple[Records, Any]:
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


def test_a_skipped_step_has_no_statistics_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ImageTask.build_model
    calls = 0

    def build(task: ImageTask, device: torch.device | None = None) -> Any:
        module = original(task, device)

        def spoil(module: Any, inputs: Any, outputs: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += module.training
            return outputs * math.nan if module.training and calls in (9, 10) else outputs  # the fifth pair of draws

        module.register_forward_hook(spoil)
        return module

    monkeypatch.setattr(ImageTask, "build_model", build)
    found, _ = records(tmp_path, interval=0)
    skipped = [
        step
        for step in found
        if found[step]["train/skipped_steps"] > found.get(step - 1, found[1])["train/skipped_steps"]
    ]
    assert len(skipped) == 1
    assert not STATISTICS & found[skipped[0]].keys()
