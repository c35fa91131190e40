"""What a training job leaves in MLflow, from the resolved configuration to the posterior."""

from __future__ import annotations

import importlib.metadata
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.posterior import Posterior
from proxscore.tracking.located import located
from proxscore.training import launch
from proxscore.training.results import Outcome

STEPS_PER_EPOCH = 4


def tree(folder: Path, uri: str, name: str, **changes: Any) -> Config:
    return configuration.parse(
        {
            "name": name,
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}},
                "data": {"kind": "digits", "limit": 200},
            },
            "method": {"paired": True},
            "baseline": {"kind": "adamw", "lr": 0.002},
            "training": {
                "epochs": 3,
                "batch_size": 50,
                "workers": 0,
                "device": "cpu",
                "storage": str(folder / "runs"),
            },
            "evaluation": {"draws": 4, "validation_draws": 2},
            "tracking": {"uri": uri, "experiment": "recorded", "interval": 0},
        }
        | changes
    )


@pytest.fixture(scope="module")
def recorded(uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[Outcome], list[Run]]:
    """A baseline and a posterior; the configuration, what the driver returned, and the runs as MLflow gives them."""
    config = tree(tmp_path_factory.mktemp("recorded"), uri, "recorded")
    lines: list[str] = []
    outcomes = launch.run(config, lines.append)
    assert any("left" in line for line in lines)
    return config, outcomes, [MlflowClient(uri).get_run(outcome.run_id) for outcome in outcomes]


def history(config: Config, run: Run, key: str) -> dict[int, float]:
    points = MlflowClient(config.tracking.uri).get_metric_history(run.info.run_id, key)
    values = {point.step: point.value for point in points}
    assert len(values) == len(points), f"{key} has a step twice"
    return values


def test_both_runs_finish_under_one_experiment(recorded: Any) -> None:
    config, _, runs = recorded
    assert [run.info.run_name for run in runs] == [
        "adamw · digits · small_cnn · recorded",
        "proximal_score · digits · small_cnn · recorded",
    ]
    assert [run.data.tags["name"] for run in runs] == ["recorded-adamw", "recorded-proximal_score"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    experiment = MlflowClient(config.tracking.uri).get_experiment_by_name("recorded")
    assert {run.info.experiment_id for run in runs} == {experiment.experiment_id}
    assert "`nll/validation`" in experiment.tags["mlflow.note.content"]


def test_the_params_are_the_resolved_configuration_flattened(recorded: Any) -> None:
    config, _, runs = recorded
    for run, method, epochs in zip(runs, (config.baseline, config.method), (6.0, 3.0), strict=True):
        expected = {"epochs_trained": str(epochs)}

        def walk(prefix: str, value: Any, expected: dict[str, str] = expected) -> None:
            if isinstance(value, dict) and value:
                for key, inner in value.items():
                    walk(f"{prefix}{key}.", inner)
            else:
                expected[prefix[:-1]] = str(value)

        resolved = config.model_dump(mode="json")
        del resolved["baseline"]
        walk("", resolved | {"method": method.model_dump(mode="json")})
        assert run.data.params == expected


def test_the_tags_hold_versions_commit_and_split(recorded: Any, repository: Path) -> None:
    _, _, runs = recorded
    for run in runs:
        for package in ("torch", "timm", "ray", "mlflow", "proxscore"):
            assert run.data.tags[f"version.{package}"] == importlib.metadata.version(package)
        splits = json.loads(run.data.tags["data.splits"])["splits"]
        assert splits["counts"]["train"] == 200
        assert set(splits["sha256"]) == {"train", "validation", "test"}
        if (repository / ".git").exists():
            command = ["git", "rev-list", "--max-count=5", "HEAD"]  # someone may have committed since
            recent = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split()
            assert run.data.tags["mlflow.source.git.commit"] in recent
            assert run.data.tags["git.dirty"] in ("true", "false")


def test_every_step_has_loss_throughput_and_the_state_of_the_posterior(recorded: Any) -> None:
    config, _, (point, posterior) = recorded
    steps = list(range(1, 3 * STEPS_PER_EPOCH + 1))
    for key in ("nll/train", "train/rows_per_second", "train/skipped_steps"):
        assert list(history(config, posterior, key)) == steps
        assert list(history(config, point, key)) == list(range(1, 6 * STEPS_PER_EPOCH + 1))
    for key in ("log_precision", "ratio"):
        low, mean, high = (history(config, posterior, f"posterior/{key}_{kind}") for kind in ("min", "mean", "max"))
        assert list(low) == list(mean) == list(high) == steps
        assert all(low[step] < mean[step] < high[step] for step in steps)
    # No weight at a step where the mean is held still; the precision's default is the number of steps.
    weights = history(config, posterior, "posterior/kappa_mean")
    assert set(weights) <= set(steps)
    assert min(weights.values()) >= config.method.penalty.mean
    assert set(history(config, posterior, "posterior/kappa_precision").values()) == {float(len(steps))}
    rates = history(config, point, "posterior/learning_rate")
    assert max(rates.values()) == pytest.approx(0.002)
    assert all(
        math.isfinite(value) and value > 0 for value in history(config, posterior, "train/rows_per_second").values()
    )


def test_every_epoch_has_validation_metrics(recorded: Any) -> None:
    config, _, (_, posterior) = recorded
    ends = [STEPS_PER_EPOCH * epoch for epoch in (1, 2, 3)]
    for key in ("accuracy", "nll", "ece", "brier"):
        name = "nll/validation" if key == "nll" else f"validation/{key}"
        assert list(history(config, posterior, name)) == ends
    assert history(config, posterior, "epoch") == dict(zip(ends, (1.0, 2.0, 3.0), strict=True))


def test_the_test_metrics_are_those_the_driver_returned(recorded: Any) -> None:
    _, outcomes, runs = recorded
    for outcome, run in zip(outcomes, runs, strict=True):
        for variant, metrics in outcome.results["test"].items():
            prefix = "test_mean" if variant == "mean" else "test"
            assert {"accuracy", "nll", "ece", "brier"} <= set(metrics)
            for name, value in metrics.items():
                assert run.data.metrics[f"{prefix}/{name}"] == value
        assert run.data.metrics["parameters"] == outcome.results["parameters"]
    assert [run.data.metrics["gradient_evaluations"] for run in runs] == [24, 24]  # the posterior's steps take two


def test_figures_are_artifacts_and_the_posterior_a_model_that_loads(recorded: Any) -> None:
    config, outcomes, runs = recorded
    client = MlflowClient(config.tracking.uri)
    figures = [{Path(item.path).name for item in client.list_artifacts(run.info.run_id, "figures")} for run in runs]
    assert figures == [{"reliability_point.png"}, {"reliability_posterior.png", "reliability_mean.png"}]
    for outcome, run in zip(outcomes, runs, strict=True):
        downloaded = Posterior.load(located(f"runs:/{run.info.run_id}", [f"tracking.uri={config.tracking.uri}"]))
        kept = Posterior.load(outcome.folder / "posterior")
        assert downloaded.mean.keys() == kept.mean.keys()
        for group in ("mean", "precision"):
            for name, tensor in getattr(kept, group).items():
                assert tensor.equal(getattr(downloaded, group)[name])
        assert sum(tensor.numel() for tensor in downloaded.mean.values()) == outcome.results["parameters"]
        assert bool(downloaded.precision) == (outcome.kind == "proximal_score")


def test_the_same_name_continues_the_same_runs(recorded: Any) -> None:
    config, outcomes, runs = recorded
    again = launch.run(config)
    assert [outcome.run_id for outcome in again] == [outcome.run_id for outcome in outcomes]
    assert [outcome.results["test"] for outcome in again] == [outcome.results["test"] for outcome in outcomes]
    assert list(history(config, runs[1], "nll/train")) == list(range(1, 3 * STEPS_PER_EPOCH + 1))


def test_training_that_aborts_leaves_a_failed_run_that_says_why(uri: str, tmp_path: Path) -> None:
    data = {"kind": "digits", "limit": 200, "mean": 1e25}  # squares of gradients overflow
    task = {"model": {"name": "small_cnn"}, "data": data}
    training = {"batch_size": 20, "workers": 0, "device": "cpu", "storage": str(tmp_path), "validate_every": 100}
    config = tree(tmp_path, uri, "aborted", task=task, baseline=None, training=training)
    with pytest.raises(FloatingPointError, match="10 steps in a row") as failure:
        launch.run(config)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("recorded").experiment_id
    (run,) = client.search_runs([experiment], "tags.name = 'aborted-proximal_score'")
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == str(failure.value)
    assert "\n" not in str(failure.value)
    skipped = history(config, run, "train/skipped_steps")
    assert list(skipped.values()) == [float(step) for step in skipped]  # each recorded step was skipped, and counted
