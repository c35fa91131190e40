"""The jobs as functions (their scripts loaded by path), and one training run that several tests look at."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Main = Callable[[list[str]], int]
SMALL = [
    "task.model.name=small_cnn",
    "task.model.kwargs={width: 4, hidden: 8}",
    "task.data.kind=digits",
    "task.data.limit=200",
    "training.device=cpu",
    "training.workers=0",
    "training.batch_size=50",
    "training.epochs=2",
]


@dataclass(frozen=True)
class Trained:
    """A finished job: where it ran, how it was started, and the file that ``--result`` named."""

    folder: Path
    overrides: list[str]
    result: dict[str, Any]
    output: str


def script(repository: Path, name: str) -> Main:
    """``main`` of a job's script."""
    spec = importlib.util.spec_from_file_location(f"{name}_job", repository / "jobs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Main = module.main
    return main


@pytest.fixture(scope="session")
def job(repository: Path) -> Callable[[str], Main]:
    """``main`` of a job by its name."""
    return lambda name: script(repository, name)


@pytest.fixture(scope="session")
def train(repository: Path) -> Main:
    return script(repository, "train")


@pytest.fixture(scope="session")
def evaluate(repository: Path) -> Main:
    return script(repository, "evaluate")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a small run, in an empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return SMALL


@pytest.fixture(scope="session")
def trained(train: Main, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A baseline and a posterior, trained in this process."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = [*SMALL, "name=small", "baseline.kind=adamw", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert train([*overrides, "--result", "result.json"]) == 0
    finally:
        os.chdir(before)
    return Trained(folder, overrides, json.loads((folder / "result.json").read_text()), "")
