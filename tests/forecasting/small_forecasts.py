"""Forecasting small enough for a test: every network by name with its keywords, and two series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from proxscore import config as configuration
from proxscore.config import Config

SMALL: dict[str, dict[str, Any]] = {
    "DLinear": {"hidden_dimension": 4, "kernel_size": 5},
    "DeepAR": {"hidden_size": 12, "num_layers": 2, "lags_seq": [1, 2, 24]},
    "LagTST": {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "lags_seq": [1, 2, 24]},
    "PatchTST": {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "patch_len": 8, "stride": 4},
    "SimpleFeedForward": {"hidden_dimensions": [16, 8]},
    "TFT": {"hidden_dim": 8, "variable_dim": 4, "num_heads": 2},
    "TiDE": {"encoder_hidden_dim": 8, "decoder_hidden_dim": 8},
    "MLP": {"hidden": [16], "dropout": 0.0},
    "Koopa": {"dynamic_dim": 8, "hidden_dim": 16, "blocks": 2, "segment": 6},
}


def write_series(path: Path) -> Path:
    """Two hourly series of 200 steps with a daily season."""
    generator = np.random.default_rng(0)
    hours = np.arange(200)
    frames = [
        pd.DataFrame(
            {
                "timestamp": pd.Timestamp("2024-01-01") + pd.to_timedelta(hours, unit="h"),
                "name": name,
                "target": level * (2 + np.sin(2 * np.pi * hours / 24)) + 0.1 * level * generator.standard_normal(200),
            }
        )
        for name, level in (("low", 1.0), ("high", 50.0))
    ]
    pd.concat(frames).to_parquet(path)
    return path


def tree(path: Path, network: str = "SimpleFeedForward", **training: Any) -> Config:
    """A configuration of these series."""
    return configuration.parse(
        {
            "name": "series",
            "task": {
                "kind": "forecasting",
                "horizon": 6,
                "context": 24,
                "model": {"name": network, "kwargs": SMALL[network]},
                "data": {
                    "kind": "table",
                    "path": str(path),
                    "id_columns": ["name"],
                    "test_windows": 3,
                    "validation_windows": 1,
                },
            },
            "method": {"kind": "proximal_score", "max_mean_step": 0.5},
            "training": {"epochs": 1, "batch_size": 32, "workers": 0, "device": "cpu"} | training,
            "evaluation": {"draws": 4, "validation_draws": 2},
            "tracking": {"interval": 0},
        }
    )
