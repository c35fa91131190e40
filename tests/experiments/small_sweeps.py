"""A sweep small enough for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.experiments.sweep.settings import TuneConfig
from proxscore.experiments.sweep.space import Domain

KIND = "method.penalty.mean_schedule.kind"
SPACE = {
    "method.max_mean_step": Domain(loguniform=[0.05, 0.8]),
    "method.penalty.mean": Domain(uniform=[0.1, 2.0]),
    KIND: Domain(choice=["constant", "cosine", "power"]),
    "method.penalty.mean_schedule.power": Domain(uniform=[0.25, 1.0], when={KIND: "power"}),
    "method.draws": Domain(randint=[1, 3]),
}


def tree(folder: Path, **sections: Any) -> dict[str, Any]:
    """A training job on 200 digits, 4 steps an epoch, recorded in a folder."""
    training = {"workers": 2, "cpus_per_worker": 0.5, "epochs": 4, "batch_size": 50, "device": "cpu"}
    return {
        "name": "sweep",
        "task": {
            "model": {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}},
            "data": {"kind": "digits", "limit": 200},
        },
        "method": {"kind": "proximal_score", "metric": "posterior"} | sections.pop("method", {}),
        "training": training | {"storage": str(folder / "runs")} | sections.pop("training", {}),
        "evaluation": {"draws": 4, "validation_draws": 2},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "interval": 0},
    } | sections


def settings(folder: Path, **tune: Any) -> tuple[Config, TuneConfig]:
    return configuration.parse(tree(folder)), TuneConfig(**tune)


@dataclass(frozen=True)
class Swept:
    """A finished sweep: its folder, ledgers when its driver was killed and at the end, and what its attempts printed."""

    folder: Path
    killed: dict[str, Any]
    ended: dict[str, Any]
    outputs: list[str]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")

    @property
    def runs(self) -> list[Run]:
        experiment = self.client.get_experiment_by_name("proxscore")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id]))

    @property
    def parent(self) -> Run:
        (parent,) = (run for run in self.runs if "mlflow.parentRunId" not in run.data.tags)
        return parent


def ledger(folder: Path) -> dict[str, Any]:
    """What the sweep in a folder has kept."""
    found: dict[str, Any] = json.loads((folder / "runs" / "sweep" / "sweep.json").read_text())
    return found


def start(repository: Path, folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """jobs/tune.py on the folder's sweep.yaml."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"RAY_ADDRESS": "local"}
    command = [sys.executable, str(repository / "jobs" / "tune.py"), "--config", str(folder / "sweep.yaml"), *overrides]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def lines(process: subprocess.Popen[str], output: list[str]) -> Iterator[str]:
    """What it prints, which is kept too."""
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line)
        yield line
