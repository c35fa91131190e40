"""Runs on two workers that are small enough for a test, and what is recorded of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from proxscore import config as configuration
from proxscore.config import Config

VIT = {
    "name": "vit_tiny_patch16_224",
    "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
DIGITS: dict[str, Any] = {"kind": "digits", "limit": 400}


# A family that is gathered and one that works on shards, beside the mean field; the mixture's weights are stacked.
MIXTURE = {"kind": "mixture", "spread": 8.0, "weights": "stacked"}
FAMILIES: dict[str, Any] = {"head.*": {"kind": "full_covariance"}, "blocks.1.*": MIXTURE}


def tree(
    folder: Path,
    name: str,
    *,
    data: dict[str, Any] = DIGITS,
    families: dict[str, Any] | None = None,
    **training: Any,
) -> Config:
    return configuration.parse(
        {
            "name": name,
            "task": {"model": VIT, "data": data},
            "method": {"families": families or {}, "initial_precision": None if families else 0.1},
            "baseline": None,
            "training": {
                "epochs": 2,
                "batch_size": 120,
                "device": "cpu",
                "cpus_per_worker": 0.5,
                "storage": str(folder / "runs"),
            }
            | training,
            "evaluation": {"draws": 4, "validation_draws": 1},
            "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "interval": 0},
        }
    )


def curve(config: Config, run_id: str, key: str = "nll/train") -> dict[int, list[float]]:
    """All values recorded for a metric, by step."""
    assert config.tracking.uri is not None
    values: dict[int, list[float]] = {}
    for point in MlflowClient(config.tracking.uri).get_metric_history(run_id, key):
        values.setdefault(point.step, []).append(point.value)
    return values
