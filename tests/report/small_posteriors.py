"""Posteriors of a small network, fitted for a second, and reports of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.posterior import Posterior
from proxscore.report import job
from proxscore.report.options import Options
from proxscore.training.saved import Saved
from proxscore.vision.image_task import ImageTask

NETWORK = {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}}
DIGITS = {"kind": "digits", "limit": 400}


def settings(data: dict[str, Any] = DIGITS, **evaluation: Any) -> Config:
    return configuration.parse(
        {
            "name": "small",
            "task": {"model": NETWORK, "data": data},
            "training": {"device": "cpu", "workers": 0, "cpus_per_worker": 0.5},
            "evaluation": evaluation,
        }
    )


def fitted(config: Config, precision: float | None = 2000.0, steps: int = 150) -> Saved:
    """A Gaussian about the weights that a few steps of AdamW find; without a precision, these alone."""
    torch.manual_seed(0)
    task = config.task.build()
    assert isinstance(task, ImageTask)
    module = task.build_model()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02)
    images, labels = task.data.train.__getitems__(range(len(task.data.train)))
    for _ in range(steps):
        optimizer.zero_grad()
        task.likelihood.nll(module(images), labels).mean().backward()
        optimizer.step()
    posterior = Posterior.of(module)
    if precision is not None:
        posterior = replace(posterior, precision={n: torch.full_like(m, precision) for n, m in posterior.mean.items()})
    posterior.description = {
        "task": task.config.model_dump(mode="json"),
        "data": task.describe(),
        "method": {"kind": "proximal_score" if precision else "adamw"},
    }
    return Saved(posterior, config)


def report(saved: Saved, folder: Path, workers: int = 0, **options: Any) -> dict[str, Any]:
    asked = {"draws": 3, "shift_rows": 40, "outside": ("noise",)} | options
    return job.make(saved, "posterior", Options(**asked), folder, workers=workers, show=lambda line: None)
