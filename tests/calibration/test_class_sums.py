"""Calibration of all class probabilities, and metrics by class, against scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from proxscore.calibration import ClassificationMetrics
from proxscore.config import ConfigError


def rows(count: int = 700, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Overconfident predictions, and labels among which the last class is missing."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits[:, :-1].softmax(1), 1, generator=generator).squeeze(1)
    return (3 * logits).log_softmax(1), targets


def metrics(log_probabilities: Tensor, targets: Tensor) -> ClassificationMetrics:
    found = ClassificationMetrics(log_probabilities.shape[1])
    for part, labels in zip(log_probabilities.split(123), targets.split(123), strict=True):
        found.update(part, torch.zeros(len(labels)), labels)
    return found


def test_every_class_probability_is_a_prediction_of_its_own() -> None:
    """Of N x C binary events torchmetrics gives the same error."""
    log_probabilities, targets = rows()
    happened = torch.nn.functional.one_hot(targets, 6)
    theirs = binary_calibration_error(log_probabilities.exp().flatten(), happened.flatten(), n_bins=15, norm="l1")
    ours = metrics(log_probabilities, targets).compute()
    assert ours["ece_all_classes"] == pytest.approx(float(theirs), abs=1e-6)
    assert ours["ece_all_classes"] < ours["ece"] / 2  # another quantity than the top label's


def test_what_is_certain_has_no_error_if_it_is_right_and_all_of_it_if_it_is_wrong() -> None:
    certain = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    for targets, expected in (([0, 1], 0.0), ([1, 0], 1.0)):
        found = ClassificationMetrics(2)
        found.update(certain, torch.zeros(2), torch.tensor(targets))
        assert found.compute()["ece_all_classes"] == expected


def test_metrics_by_class_are_those_of_scikit_learn() -> None:
    log_probabilities, targets = rows()
    found = metrics(log_probabilities, targets)
    values = found.compute()
    answers, y = log_probabilities.argmax(1).numpy(), targets.numpy()
    by_class = found.per_class
    for ours, theirs in (
        (
            by_class.recall,
            sklearn.metrics.recall_score(y, answers, average=None, labels=range(6), zero_division=np.nan),
        ),
        (by_class.precision, sklearn.metrics.precision_score(y, answers, average=None, labels=range(6))),
        (by_class.counts, np.bincount(y, minlength=6)),
        (by_class.nll, [-log_probabilities[y == c, c].mean() for c in range(6)]),
        (by_class.confidence, [log_probabilities.exp().amax(1)[y == c].mean() for c in range(6)]),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = sklearn.metrics.balanced_accuracy_score(y, answers)
    assert values["balanced_accuracy"] == pytest.approx(balanced)
    for c in range(6):
        theirs = binary_calibration_error(log_probabilities[:, c].exp(), (targets == c).long(), n_bins=15, norm="l1")
        assert float(by_class.classwise_ece[c]) == pytest.approx(float(theirs), abs=1e-6)


def test_metrics_by_class_are_those_of_compute() -> None:
    found = metrics(*rows())
    with pytest.raises(ConfigError, match=r"compute\(\)"):
        _ = found.per_class
