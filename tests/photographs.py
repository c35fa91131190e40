"""A posterior over PNG files in three folders, of a network with BatchNorm, whose training data are gone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ("green", "red", "blue")


@dataclass(frozen=True)
class Photographs:
    """What training left, and the images that it was tested on, elsewhere.

    Attributes:
        folder: with ``mlflow.db`` and ``runs``.
        tests: the test images, a folder per class.
        result: of the job.
        uri: of MLflow.
    """

    folder: Path
    tests: Path
    result: dict[str, Any]
    uri: str

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "photographs-proximal_score"

    @property
    def files(self) -> list[Path]:
        return sorted(self.tests.rglob("*.png"))


def paint(folder: Path, count: int, seed: int) -> None:
    """Noisy pictures of one colour, of several sizes."""
    generator = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for image in range(count):
            height, width = generator.integers(20, 40, 2)
            pixels = generator.integers(0, 160, (height, width, 3))
            pixels[:, :, number] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{image:02d}.png")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    from proxscore.commands.train import main as train

    folder = tmp_path_factory.mktemp("photographs")
    paint(folder / "data" / "train", 40, 0)
    paint(folder / "data" / "val", 20, 1)
    paint(folder / "data" / "test", 10, 2)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    overrides = [
        *("name=photographs", "task.data.kind=image_folder", f"task.data.path={folder / 'data'}", "task.data.size=24"),
        *("task.data.mean=[.4,.5,.6]", "task.data.std=[.2,.3,.4]", "task.data.interpolation=bicubic"),
        *("task.data.crop=.9", "task.model.name=test_byobnet", "method.initial_noise=.1"),
        *("training.epochs=4", "training.batch_size=20", "training.workers=0", "training.device=cpu"),
        *("evaluation.draws=5", "evaluation.validation_draws=2", "evaluation.norm_batches=3", "evaluation.seed=3"),
        *(f"training.storage={folder / 'runs'}", f"tracking.uri={uri}", "tracking.register_as=colours"),
    ]
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert train([*overrides, "--result", str(folder / "result.json")]) == 0
    finally:
        os.chdir(before)
    shutil.move(folder / "data" / "test", folder / "tests")
    shutil.rmtree(folder / "data")  # nothing that follows has it
    return Photographs(folder, folder / "tests", json.loads((folder / "result.json").read_text()), uri)
