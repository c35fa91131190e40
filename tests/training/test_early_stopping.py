"""The state whose validation NLL is the lowest is what is judged and kept, whatever comes after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.posterior import Posterior
from proxscore.training import evaluation, launch
from proxscore.training.local.worker import LocalWorker
from proxscore.training.run import Run


def settings(folder: Path, **training: Any) -> Config:
    """A network that learns 200 digits by heart: its validation NLL rises long before the end."""
    return configuration.parse(
        {
            "name": "-".join(["early", *map(str, training.values())]),
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"width": 8, "hidden": 32}},
                "data": {"kind": "digits", "limit": 200},
            },
            "method": {"kind": "adamw", "lr": 0.03},
            "baseline": None,
            "training": {"epochs": 16, "batch_size": 50, "device": "cpu", "storage": str(folder / "runs")}
            | {"cpus_per_worker": 0.5, "checkpoint_every": 5, "keep_checkpoints": 1}
            | training,
            "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        }
    )


def validation_nll(config: Config, folder: Path) -> float:
    """Of a saved posterior, on the validation split."""
    task = config.task.build()
    worker = LocalWorker(folder, torch.device("cpu"), lambda payloads: None, keep=1)
    posterior = Posterior.load(folder / "posterior")
    metrics, _ = evaluation.evaluate(Run(config, task, worker, task.build_model()), "validation", 0, posterior)
    return metrics["nll"]


def test_the_best_state_is_kept_and_judged(tmp_path: Path) -> None:
    late, early = (settings(tmp_path, workers=0, early_stopping=stop) for stop in (False, True))
    (last,), (best,) = (launch.run(each, lambda line: None) for each in (late, early))
    lowest = best.results["validation"]
    assert lowest["stopped"] == 1
    assert lowest["nll"] < lowest["end"] - 0.01  # else the test tests nothing
    assert last.results["validation"] == lowest | {"stopped": 0}
    assert validation_nll(late, last.folder) == pytest.approx(lowest["end"], rel=1e-5)
    assert validation_nll(early, best.folder) == pytest.approx(lowest["nll"], rel=1e-5)
    assert best.results["evaluations"] == last.results["evaluations"]  # what it cost
    assert best.results["test"] != last.results["test"]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
def test_so_it_is_of_shards_on_a_cluster(tmp_path: Path) -> None:
    config = settings(tmp_path, workers=2, early_stopping=True)
    (best,) = launch.run(config, lambda line: None)
    lowest = best.results["validation"]
    assert lowest["nll"] < lowest["end"] - 0.01
    assert validation_nll(config, best.folder) == pytest.approx(lowest["nll"], rel=1e-5)


def test_a_checkpoint_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalWorker, "checkpoints", lambda self: iter(()))
    with pytest.raises(configuration.ConfigError, match=r"training\.early_stopping: the checkpoint of step \d+, where"):
        launch.run(settings(tmp_path, workers=0, early_stopping=True), lambda line: None)
