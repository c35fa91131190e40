"""Tasks of several labels and of numbers, from a table to evaluated runs; weights of classes; what does not go together."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from proxscore.config import ConfigError, parse
from proxscore.posterior import Posterior
from proxscore.training.launch import run
from proxscore.training.saved import load
from proxscore.vision.image_task import ImageTask
from proxscore.vision.task import VisionConfig

ROWS = 160


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(path: Path, kind: str) -> Path:
    """Images whose left and right halves are bright or dark: labels say which are bright, numbers how bright both are."""
    rng = np.random.default_rng(5)  # the split is drawn from 0
    halves = rng.integers(0, 2, (ROWS, 2)) if kind == "labels" else rng.uniform(0, 1, (ROWS, 2))
    images = [encoded(np.repeat(40 + 160 * row, 4)[None].repeat(8, 0) + rng.integers(0, 20, (8, 8))) for row in halves]
    if kind == "labels":
        targets: list[Any] = [[name for name, on in zip(("left", "right"), row, strict=True) if on] for row in halves]
    else:
        targets = [float(1000 + 100 * row.sum()) for row in halves]
    pq.write_table(pa.table({"image": images, "label": targets}), path)
    return path


def configuration(folder: Path, kind: str, likelihood: str, method: dict[str, Any]) -> Any:
    file = table(folder / "train.parquet", kind)
    return parse(
        {
            "name": kind,
            "task": {
                "likelihood": likelihood,
                "model": {"name": "small_cnn"},
                "data": {"kind": "parquet", "path": str(file), "size": 8, "channels": 1},
            },
            "method": method,
            "training": {
                "epochs": 60, "batch_size": 16, "workers": 0, "device": "cpu", "storage": str(folder), "loader_processes": 0,
                "validate_every": 60, "checkpoint_every": 60,
            },
            "evaluation": {"draws": 4, "validation_draws": 2},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
    )  # fmt: skip


METHODS = [{"kind": "proximal_score", "lr": 0.01}, {"kind": "adamw", "lr": 0.01}]


@pytest.mark.parametrize("method", METHODS)
def test_several_labels_are_learned_evaluated_and_saved(tmp_path: Path, method: dict[str, Any]) -> None:
    (outcome,) = run(configuration(tmp_path, "labels", "multi_label", method), lambda line: None)
    test = outcome.results["test"].get("posterior", outcome.results["test"].get("point"))
    assert test["map"] > 0.99
    assert test["nll"] < 0.3 < 2 * math.log(2)
    saved = load(str(outcome.folder / "posterior"), [])
    assert saved.posterior.description["data"]["class_names"] == ["left", "right"]
    assert isinstance(saved.config.task.build(), ImageTask)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_learned_in_their_own_units(tmp_path: Path, method: dict[str, Any]) -> None:
    (outcome,) = run(configuration(tmp_path, "values", "gaussian", method), lambda line: None)
    test = outcome.results["test"].get("posterior", outcome.results["test"].get("point"))
    assert test["rmse"] < 20  # the spread of the targets is 41
    assert 0.6 < test["coverage_90"] <= 1
    posterior = Posterior.load(outcome.folder / "posterior")
    units = posterior.description["data"]
    assert units["target_mean"][0] == pytest.approx(1100, abs=15)
    # other data of other units: the network goes on telling numbers in those that it was trained in
    found = load(str(outcome.folder / "posterior"), ["task.data.limit=20"]).config.task
    again = found.build(trained=units)
    assert again.likelihood.location.tolist() == units["target_mean"]
    assert found.build().likelihood.location.tolist() != units["target_mean"]


def test_weights_of_classes_are_recorded_and_count_one_on_average() -> None:
    def weights(given: Any) -> torch.Tensor:
        config = parse({"task": {"data": {"kind": "digits", "limit": 500}, "class_weights": given}}).task
        assert isinstance(config, VisionConfig)
        task = config.build()
        rows, found = (torch.tensor(task.describe()[key]) for key in ("rows_per_class", "class_weights"))
        assert rows.sum() == 500
        assert ((rows * found).sum() / 500).item() == pytest.approx(1)
        return rows * found

    torch.testing.assert_close(weights("balanced"), torch.full((10,), 50.0))
    weights([1.0] * 9 + [5.0])
    with pytest.raises(ConfigError, match=r"task\.class_weights has 2 numbers; the data have 10 classes"):
        weights([1.0, 2.0])


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({"likelihood": "multi_label"}, "task.likelihood=multi_label needs a list of labels for each image"),
        ({"likelihood": "gaussian"}, "task.likelihood=gaussian needs numbers for each image"),
        ({"likelihood": "bernoulli"}, "task.likelihood=bernoulli is one of two classes; the data have 10"),
        ({"likelihood": "bernoulli", "label_smoothing": 0.1}, "are of likelihood=categorical"),
    ],
)
def test_what_does_not_go_together_is_refused(task: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse({"task": {"data": {"kind": "digits"}} | task}).task.build()


def test_laplace_and_temperature_scaling_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    config = configuration(tmp_path, "labels", "multi_label", METHODS[1])
    evaluation = config.evaluation.model_copy(update={"temperature_scaling": True})
    with pytest.raises(ConfigError, match=r"evaluation\.temperature_scaling is of classes"):
        run(config.model_copy(update={"evaluation": evaluation}), lambda line: None)
    shifts = config.evaluation.model_copy(update={"shifts": ["rotated", "photographs"]})
    with pytest.raises(ConfigError, match=r"evaluation\.shifts=photographs: these images are of no class"):
        run(config.model_copy(update={"evaluation": shifts}), lambda line: None)
    smooth = parse({"task": {"data": {"kind": "digits"}, "label_smoothing": 0.1}, "method": {"kind": "laplace"}})
    with pytest.raises(ConfigError, match="laplace-torch's curvature is that of the plain log-likelihood"):
        smooth.method.check_likelihood(smooth.task.build().likelihood)
