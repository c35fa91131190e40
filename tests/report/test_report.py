"""The numbers of a report: those of the predictions, whatever the batches and the number of processes."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from small_posteriors import DIGITS, fitted, report, settings

from proxscore import config as configuration
from proxscore.calibration import ClassificationMetrics
from proxscore.config import ConfigError
from proxscore.inference import Bernoulli
from proxscore.posterior import predict
from proxscore.posterior.convergence import Verdict
from proxscore.posterior.running import RunningCategorical
from proxscore.report.headline import headline
from proxscore.report.job import plain
from proxscore.report.judged import row_scores
from proxscore.report.scored import Scored, logits_of
from proxscore.training.data.batches import evaluation_batches
from proxscore.training.saved import Saved
from proxscore.vision.corruptions import CORRUPTIONS, CorruptedImage, NumberedImages
from proxscore.vision.image_task import ImageTask
from proxscore.vision.images import ImageDataset
from proxscore.vision.outside import load_outside

OF_THIS_RUN = ("created", "cost", "processes", "command", "headline")


def close(ours: Any, theirs: Any, where: str = "") -> None:
    """The same values throughout, numbers to rounding."""
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            if key not in OF_THIS_RUN:
                close(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            close(one, other, f"{where}[{place}]")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=1e-5, nan_ok=True), where
    else:
        assert ours == theirs, where


def by_hand(saved: Saved, images: Any) -> tuple[Any, torch.Tensor]:
    """The predictive of three draws, and the mean over draws of the energy."""
    task = saved.config.task.build()
    module = saved.posterior.load_into(task.build_model()).eval()
    found = predict(module, lambda: evaluation_batches(images, 100, 0, 1), saved.posterior, draws=3)
    energy = torch.zeros(len(images))
    for index in range(3):
        with saved.posterior.use(module, index), torch.no_grad():
            energy -= torch.cat([module(x).logsumexp(1) for x, _ in evaluation_batches(images, 100, 0, 1)]) / 3
    return found, energy


def task_of(saved: Saved) -> ImageTask:
    task = saved.config.task.build()
    assert isinstance(task, ImageTask)
    return task


def test_metrics_are_those_of_any_evaluation_and_classes_those_of_scikit_learn(
    record: dict[str, Any], digits: Saved
) -> None:
    found, _ = by_hand(digits, task_of(digits).data.test)
    metrics = ClassificationMetrics(10)
    metrics.update(found.log_probabilities, found.expected_entropy, found.targets)
    ours = record["in_distribution"]["metrics"]
    for key, value in metrics.compute().items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key
    precision, recall, _, counts = sklearn.metrics.precision_recall_fscore_support(
        found.targets, found.mean.argmax(1), labels=range(10), zero_division=np.nan
    )
    classes = record["in_distribution"]["classes"]
    np.testing.assert_allclose([each["recall"] for each in classes], recall)
    np.testing.assert_allclose([each["precision"] for each in classes], precision)
    assert [each["count"] for each in classes] == counts.tolist()


def test_other_images_are_detected_by_the_scores_of_their_predictions(record: dict[str, Any], digits: Saved) -> None:
    task = task_of(digits)
    scores = []
    for images in (task.data.test, load_outside("photographs", task).images):
        found, energy = by_hand(digits, images)
        p = found.mean.double().numpy()
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
        mutual = np.maximum(entropy - found.expected_entropy.double().numpy(), 1e-7)  # below is rounding
        scores.append(
            {
                "maximum_probability": np.sort(p)[:, :-1].sum(1),
                "entropy": entropy,
                "mutual_information": mutual,
                "energy": energy.numpy(),
            }
        )
    inside, outside = scores
    reported = record["out_of_distribution"][1]
    assert (reported["name"], reported["label"], reported["rows"]) == ("photographs", "near", 1000)
    for name in inside:
        values = np.concatenate([inside[name], outside[name]])
        is_outside = np.repeat([0, 1], [len(inside[name]), len(outside[name])])
        assert reported["scores"][name]["auroc"] == pytest.approx(
            sklearn.metrics.roc_auc_score(is_outside, values), abs=1e-4
        )
        assert reported["scores"][name]["aupr_out"] == pytest.approx(
            sklearn.metrics.average_precision_score(is_outside, values), abs=1e-4
        )


def test_a_curve_is_that_of_the_corrupted_images(record: dict[str, Any], digits: Saved) -> None:
    task = task_of(digits)
    test = task.data.test
    rows = np.sort(np.argsort(np.random.default_rng(0).random(len(test)), kind="stable")[:40])
    assert record["shift"]["rows"] == 40
    for name, strength in (("gaussian_noise", 4), ("blur", 5)):
        change = CorruptedImage(name, strength, task.normalisation)
        images, numbered = NumberedImages(test, change, rows).__getitems__(range(40))
        module = digits.posterior.load_into(task.build_model())
        found = predict(module, [(images, numbered[:, 0])], digits.posterior, draws=3)
        accuracy = float((found.mean.argmax(1) == found.targets).double().mean())
        reported = record["shift"]["corruptions"][name]["strengths"][strength - 1]
        assert reported["accuracy"] == pytest.approx(accuracy)
        assert reported["nll"] == pytest.approx(-float(found.log_density.double().mean()), abs=1e-5)
    at = [found["strengths"][2]["nll"] for found in record["shift"]["corruptions"].values()]
    assert record["shift"]["mean"][2]["nll"] == pytest.approx(np.mean(at))
    assert list(record["shift"]["corruptions"]) == list(CORRUPTIONS)


def test_prediction_sets_are_calibrated_on_validation_and_counted_on_test(
    record: dict[str, Any], digits: Saved
) -> None:
    task = task_of(digits)
    validation, test = (by_hand(digits, part)[0] for part in (task.data.validation, task.data.test))
    scores = 1 - validation.log_density.double().exp().numpy()
    q = np.sort(scores)[int(np.ceil((len(scores) + 1) * 0.9)) - 1]
    sets = 1 - test.mean.double().numpy() <= q
    found = record["prediction_sets"]["methods"]["lac"]
    assert record["prediction_sets"]["calibration_rows"] == len(scores) == len(task.data.validation)
    assert found["threshold"] == pytest.approx(q, abs=1e-6)
    assert found["coverage"] == pytest.approx(sets[np.arange(len(sets)), test.targets].mean(), abs=0.01)
    assert found["mean_size"] == pytest.approx(sets.sum(1).mean(), abs=0.02)
    assert sum(found["sizes"]) == len(task.data.test)


def test_a_report_says_what_it_takes_to_make_it_again(
    record: dict[str, Any], report_folder: Path, digits: Saved
) -> None:
    written = json.loads((report_folder / "report.json").read_text())
    assert written == plain(record)
    assert written["data"]["splits"] == task_of(digits).data.splits
    assert written["preprocessing"] == {"mean": 0.5, "std": 0.5}
    assert written["draws"] == 3
    assert written["versions"]["torch"] == importlib.metadata.version("torch")
    assert "not comparable with ece" in written["definitions"]["ece_all_classes"]
    cost = written["cost"]
    assert cost["ratio"] == pytest.approx(cost["seconds_per_1000"] / cost["plain_seconds_per_1000"])


def test_batches_of_any_size_give_the_same_report(record: dict[str, Any], digits: Saved, tmp_path: Path) -> None:
    config = settings(batch_size=37)
    close(report(Saved(digits.posterior, config), tmp_path, outside=("noise", "near:photographs")), record)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
def test_two_workers_give_the_report_of_one_process(record: dict[str, Any], digits: Saved, tmp_path: Path) -> None:
    config = settings(batch_size=90)  # the last batch of a part may leave one of them without a row
    config = config.model_copy(
        update={"training": config.training.model_copy(update={"workers": 2, "storage": str(tmp_path / "runs")})}
    )
    found = report(Saved(digits.posterior, config), tmp_path, workers=2, outside=("noise", "near:photographs"))
    assert found["processes"] == 2
    close(found, record)
    assert not list((tmp_path / "runs").glob("report-*"))


def test_mutual_information_of_a_point_estimate_is_not_defined(tmp_path: Path) -> None:
    found = report(fitted(settings(), precision=None), tmp_path)
    assert not found["has_draws"]
    assert found["in_distribution"]["metrics"]["mutual_information"] is None
    assert found["out_of_distribution"][0]["scores"]["mutual_information"] is None
    assert found["out_of_distribution"][0]["scores"]["energy"]["auroc"] > 0
    assert "not defined for a point estimate" in (tmp_path / "report.html").read_text()
    assert any("not defined for it" in sentence["text"] for sentence in found["headline"])


def test_what_is_wrong_with_a_posterior_stands_at_the_top(digits: Saved, tmp_path: Path) -> None:
    """A verdict that is not sound comes first; draws far worse than the mean are told of."""
    wide = fitted(settings(), precision=4.0)
    wide.posterior.description["verdict"] = Verdict("still moving", ("its mean moves",)).as_json()
    first, second, *rest = report(wide, tmp_path)["headline"]
    assert first["tone"] == "plain"
    assert second == {"tone": "bad", "text": "This posterior is still moving: its mean moves."}
    assert any("Single draws are far worse than the mean weights alone" in sentence["text"] for sentence in rest)


def test_a_posterior_that_is_well_is_not_doubted(record: dict[str, Any]) -> None:
    assert not any("far worse" in sentence.text for sentence in headline(record, []))


def test_a_split_that_training_did_not_know_is_warned_of(digits: Saved, tmp_path: Path) -> None:
    found = report(Saved(digits.posterior, settings(DIGITS | {"split_seed": 5})), tmp_path)
    warnings = [sentence["text"] for sentence in found["headline"] if sentence["tone"] == "bad"]
    assert any("test split is not that of training" in text for text in warnings)
    assert any("validation split is not that of training" in text for text in warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "--split validation: these rows calibrate temperature and prediction sets"),
        ({"coverage": 0.999}, "--coverage 0.999 needs at least 999 calibration rows; the validation split has 180"),
        ({"coverage": 1.0}, "--coverage is 1; it must be between 0 and 1"),
        ({"shift_rows": 0}, "--shift-rows is 0"),
        ({"outside": ("noise", "noise")}, "--ood names a set twice"),
        ({"outside": ("digits",)}, "--ood digits: .* are among those of training"),
    ],
)
def test_what_cannot_be_reported_is_refused_before_anything_is_computed(
    digits: Saved, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        report(digits, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_posterior_of_another_task_is_refused(digits: Saved, tmp_path: Path) -> None:
    config = configuration.parse({"task": {"kind": "forecasting"}})
    with pytest.raises(ConfigError, match="--report is for image classification; this posterior's task is forecasting"):
        report(Saved(digits.posterior, config), tmp_path)


def test_rows_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    """Their neighbours keep their own numbers."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(120):
        path = tmp_path / "data" / ("dark" if number % 2 else "light") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 120, (8, 8), dtype=np.uint8) + (0 if number % 2 else 110)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    data = {"kind": "image_folder", "path": str(tmp_path / "data"), "size": 8, "channels": 1, "unreadable": "skip"}
    saved = fitted(settings(data), steps=10)
    task = task_of(saved)
    test = task.data.test
    assert isinstance(test, ImageDataset)
    broken = test.reader.files[test.rows[3]]  # type: ignore[attr-defined]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    _, numbered = NumberedImages(test).__getitems__(range(6))
    assert numbered[:, 1].tolist() == [0, 1, 2, 4, 5]
    found = report(saved, tmp_path / "out", shift_rows=None, coverage=0.8)
    assert found["in_distribution"]["skipped_rows"] == 1
    assert found["in_distribution"]["metrics"]["rows"] == len(test) - 1


def test_scores_tell_apart_predictions_that_round_to_certainty() -> None:
    """Of one logit for two classes: the surer, the smaller the score, far beyond single precision's distance from 1."""
    logits = torch.tensor([[5.0], [-20.0], [40.0], [-60.0]])
    sums = RunningCategorical(Bernoulli(), torch.zeros(4))
    sums.add(logits)
    half = logits_of(logits, binary=True)
    np.testing.assert_allclose(half.softmax(1)[:, 1], logits[:, 0].sigmoid(), rtol=1e-5)
    batch = Scored(sums.predictive(), torch.arange(4), -half.logsumexp(1).double(), torch.zeros(4))
    scores = row_scores(batch)
    np.testing.assert_allclose(scores[:, 0], [-5.0 - np.log1p(np.exp(-5.0)), -20.0, -40.0, -60.0], atol=1e-5)
    for column in (0, 1, 3):
        assert (scores[:, column].diff() < 0).all()
    assert (scores[:, 2] == 0).all()
