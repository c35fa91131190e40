"""A job that asks for compiled passes takes them, says so, and learns the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from torch import nn

from proxscore.config import parse
from proxscore.methods.method import RunLength, Setup
from proxscore.training.launch import run

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")


def outcome(folder: Path, fused: bool | None) -> tuple[dict[str, Any], str]:
    """Results of an epoch on scikit-learn's digits, and the tag of its run that says how steps were taken."""
    uri = f"sqlite:///{folder}/mlflow.db"
    config = parse(
        {
            "name": f"fused-{fused}",
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"hidden": 512}},
                "data": {"kind": "digits", "limit": 300},
            },
            "method": {"kind": "proximal_score", "fused": fused, "initial_noise": 0.02},
            "training": {"epochs": 1, "batch_size": 100, "workers": 0, "storage": str(folder)},
            "evaluation": {"draws": 2, "validation_draws": 1},
            "tracking": {"uri": uri},
        }
    )
    (found,) = run(config, lambda line: None)
    return found.results, MlflowClient(uri).get_run(found.run_id).data.tags["step"]


def test_a_job_with_compiled_passes_learns_what_the_other_one_learns(tmp_path: Path) -> None:
    """Test NLL within 1e-4: a few units in the last place in each of three steps."""
    (compiled, said), (plain, other) = (outcome(tmp_path, fused) for fused in (True, False))
    assert (compiled["fused"], plain["fused"]) == (True, False)
    assert (said, other) == ("compiled", "not compiled")
    assert compiled["test"]["posterior"]["nll"] == pytest.approx(plain["test"]["posterior"]["nll"], abs=1e-4)


@pytest.mark.parametrize(("steps", "expected"), [(100, False), (10_000_000, True)])
def test_a_job_compiles_where_the_run_is_long_enough(steps: int, expected: bool) -> None:
    section = parse({"method": {"kind": "proximal_score", "initial_noise": 0.02}}).method
    network = nn.Linear(256, 256)
    assert section.build(Setup(network, RunLength(steps, 100, 1000))).fused == expected  # type: ignore[attr-defined]
