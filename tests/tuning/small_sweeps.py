"""A sweep small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.tuning.settings import TuneConfig
from proxscore.tuning.space import Domain

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
        "method": {"kind": "proximal_score", "paired": False} | sections.pop("method", {}),
        "training": training | {"storage": str(folder / "runs")} | sections.pop("training", {}),
        "evaluation": {"draws": 4, "validation_draws": 2},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "interval": 0},
    } | sections


def settings(folder: Path, **tune: Any) -> tuple[Config, TuneConfig]:
    return configuration.parse(tree(folder)), TuneConfig(**tune)
