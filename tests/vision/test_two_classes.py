"""Two classes from one logit: a folder of images trains, is judged and predicts as two logits do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, MethodError
from proxscore.posterior import Posterior
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.vision.image_task import ImageTask


@pytest.fixture(scope="module")
def zeros_and_eights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten zeros and eights, a folder each."""
    folder = tmp_path_factory.mktemp("images")
    images, labels = load_digits(return_X_y=True)
    for name, label in (("eight", 8), ("zero", 0)):
        (folder / name).mkdir()
        for number, image in enumerate(images[labels == label][:120]):
            pixels = (image.reshape(8, 8) * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def settings(folder: Path, likelihood: str, method: dict[str, Any] | None = None) -> Config:
    return configuration.parse(
        {
            "name": "two",
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"width": 4}},
                "data": {"kind": "image_folder", "path": str(folder), "size": 8, "channels": 1},
                "likelihood": likelihood,
            },
            "method": method or {"kind": "adamw", "lr": 0.01},
            # No process decodes for one epoch and is gone: the images are of 8 x 8 pixels.
            "training": {"epochs": 20, "batch_size": 20, "workers": 0, "device": "cpu"}
            | {"loader_processes": 0, "validate_every": 10},
            "evaluation": {"draws": 4, "validation_draws": 1},
        }
    )


@pytest.mark.parametrize("kind", ["adamw", "proximal_score"])
def test_one_logit_learns_what_two_learn(kind: str, zeros_and_eights: Path, tmp_path: Path) -> None:
    """Zeros and eights are told apart by either; the network has one output, and its posterior predicts two classes."""
    found = {}
    for likelihood in ("bernoulli", "categorical"):
        config = settings(zeros_and_eights, likelihood, {"kind": kind} | ({"lr": 0.01} if kind == "adamw" else {}))
        task = ImageTask(config.task)  # type: ignore[arg-type]
        worker = LocalWorker(tmp_path / likelihood, torch.device("cpu"), lambda payloads: None, 1)
        results = train(config, config.method, 20, task, worker)
        (metrics, *_) = results["test"].values()
        found[likelihood] = metrics
    head = [value for name, value in Posterior.load(
        next((tmp_path / "bernoulli" / "checkpoints").glob("*/posterior"))).mean.items() if value.ndim == 2][-1]  # fmt: skip
    assert head.shape[0] == 1
    assert found["bernoulli"].keys() == found["categorical"].keys()
    assert found["categorical"]["nll"] < 0.35  # log 2 = .69 knows nothing
    assert found["bernoulli"]["nll"] < 0.35
    assert found["bernoulli"]["accuracy"] > 0.85


def test_more_classes_than_two_and_methods_without_a_curvature_are_refused() -> None:
    config = configuration.load(None, ["task.likelihood=bernoulli"])
    with pytest.raises(ConfigError, match=r"task\.likelihood=bernoulli is one of two classes; the data have 10"):
        ImageTask(config.task)  # type: ignore[arg-type]


def test_laplace_is_refused_for_one_logit(zeros_and_eights: Path) -> None:
    config = settings(zeros_and_eights, "bernoulli", {"kind": "laplace"})
    with pytest.raises(MethodError, match=r"method\.kind=laplace: .* none for Bernoulli"):
        config.method.check_likelihood(ImageTask(config.task).likelihood)  # type: ignore[arg-type]
