"""ClassificationMetrics against loops over rows in plain numpy, scikit-learn, torchmetrics, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from proxscore.calibration import ClassificationMetrics
from proxscore.config import ConfigError

KEYS = {
    "accuracy",
    "balanced_accuracy",
    "nll",
    "brier",
    "ece",
    "mce",
    "adaptive_ece",
    "ece_all_classes",
    "entropy",
    "expected_entropy",
    "mutual_information",
    "confidence",
    "sure",
    "sure_errors",
}


def predictive(rows: int, classes: int, *, draws: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the mean of the draws' probabilities, their mean entropy, and labels that the mean gets half right."""
    generator = torch.Generator().manual_seed(seed)
    common = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    logits = common + torch.randn(draws, rows, classes, generator=generator, dtype=torch.float64)
    probabilities = logits.softmax(-1)
    expected_entropy = -(probabilities * probabilities.log()).sum(-1).mean(0)
    mean = probabilities.mean(0)
    sampled = torch.multinomial(mean, 1, generator=generator).squeeze(1)
    uniform = torch.randint(classes, (rows,), generator=generator)
    targets = torch.where(torch.rand(rows, generator=generator) < 0.5, sampled, uniform)
    return mean.log(), expected_entropy, targets


def by_loops(log_probabilities: Tensor, expected_entropy: Tensor, targets: Tensor, bins: int) -> dict[str, float]:
    """Every metric from its definition, row by row and bin by bin."""
    p = np.exp(log_probabilities.double().numpy())
    labels = targets.numpy()
    n, classes = p.shape
    nll = brier = entropy = 0.0
    top: list[tuple[float, bool]] = []
    for row in range(n):
        nll -= math.log(p[row, labels[row]])
        for c in range(classes):
            brier += (p[row, c] - (1.0 if c == labels[row] else 0.0)) ** 2
            entropy -= p[row, c] * math.log(p[row, c])
        best = int(np.argmax(p[row]))
        top.append((float(p[row, best]), best == labels[row]))
    gaps, weights = [], []
    for b in range(bins):
        members = [r for r in top if b / bins <= r[0] < (b + 1) / bins or (b == bins - 1 and r[0] == 1.0)]
        if members:
            gaps.append(abs(sum(hit for _, hit in members) - sum(c for c, _ in members)) / len(members))
            weights.append(len(members) / n)
    adaptive = 0.0
    ordered = sorted(top)
    for b in range(bins):
        members = ordered[b * n // bins : (b + 1) * n // bins]
        adaptive += abs(sum(hit for _, hit in members) - sum(c for c, _ in members)) / n
    events = [(float(p[row, c]), c == labels[row]) for row in range(n) for c in range(classes)]
    all_classes = 0.0
    for b in range(bins):
        members = [e for e in events if b / bins <= e[0] < (b + 1) / bins or (b == bins - 1 and e[0] == 1.0)]
        all_classes += abs(sum(hit for _, hit in members) - sum(q for q, _ in members)) / len(events)
    recalls = [[int(np.argmax(p[row])) == c for row in range(n) if labels[row] == c] for c in range(classes)]
    mean_expected = float(expected_entropy.double().mean())
    return {
        "accuracy": sum(hit for _, hit in top) / n,
        "nll": nll / n,
        "brier": brier / n,
        "ece": sum(w * g for w, g in zip(weights, gaps, strict=True)),
        "mce": max(gaps),
        "adaptive_ece": adaptive,
        "ece_all_classes": all_classes,
        "balanced_accuracy": float(np.mean([np.mean(hits) for hits in recalls if hits])),
        "entropy": entropy / n,
        "expected_entropy": mean_expected,
        "mutual_information": entropy / n - mean_expected,
        "confidence": sum(confidence for confidence, _ in top) / n,
        "sure": sum(confidence >= 0.9 for confidence, _ in top) / n,
        "sure_errors": sum(confidence >= 0.9 and not hit for confidence, hit in top) / n,
    }


def computed(log_probabilities: Tensor, expected_entropy: Tensor, targets: Tensor, bins: int = 15) -> dict[str, float]:
    metrics = ClassificationMetrics(log_probabilities.shape[1], bins)
    metrics.update(log_probabilities, expected_entropy, targets)
    return metrics.compute()


@pytest.mark.parametrize(("classes", "bins"), [(2, 15), (10, 15), (7, 4)])
def test_every_metric_equals_its_definition_in_loops(classes: int, bins: int) -> None:
    batch = predictive(500, classes, seed=classes)
    found = computed(*batch, bins=bins)
    assert set(found) == KEYS
    assert all(type(value) is float for value in found.values())
    assert found == pytest.approx(by_loops(*batch, bins=bins), abs=2e-6)


def test_metrics_equal_scikit_learn_and_torchmetrics() -> None:
    log_probabilities, expected_entropy, targets = predictive(800, 5)
    found = computed(log_probabilities, expected_entropy, targets)
    p, y = log_probabilities.exp().numpy(), targets.numpy()
    assert found["nll"] == pytest.approx(sklearn.metrics.log_loss(y, p, labels=range(5)), abs=1e-6)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, p.argmax(1)), abs=1e-6)
    brier = sklearn.metrics.brier_score_loss(y, p, labels=range(5), scale_by_half=False)
    assert found["brier"] == pytest.approx(brier, abs=1e-6)
    for key, norm in (("ece", "l1"), ("mce", "max")):
        theirs = MulticlassCalibrationError(5, n_bins=15, norm=norm)(log_probabilities.exp(), targets)
        assert found[key] == pytest.approx(float(theirs), abs=1e-6)


def test_splitting_into_batches_and_reordering_rows_changes_nothing() -> None:
    batch = predictive(301, 6)
    whole = computed(*batch)
    metrics = ClassificationMetrics(6)
    order = torch.randperm(301, generator=torch.Generator().manual_seed(1))
    for rows in order.split([1, 100, 7, 193]):
        metrics.update(*(values[rows] for values in batch))
    assert metrics.compute() == pytest.approx(whole, abs=1e-12)


def test_a_batch_after_compute_counts_and_reset_forgets() -> None:
    first, second = predictive(50, 3, seed=1), predictive(70, 3, seed=2)
    metrics = ClassificationMetrics(3)
    metrics.update(*first)
    metrics.compute()
    assert metrics.confidences.shape == (50,)
    metrics.update(*second)
    assert metrics.confidences.shape == (120,)
    both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    assert metrics.compute() == pytest.approx(computed(*both), abs=1e-12)
    metrics.reset()
    metrics.update(*second)
    assert metrics.compute() == pytest.approx(computed(*second), abs=1e-12)


def test_every_pixel_is_a_row() -> None:
    log_probabilities, expected_entropy, targets = predictive(2 * 5 * 3, 4)
    images = (
        log_probabilities.reshape(2, 5, 3, 4).permute(0, 3, 1, 2),
        expected_entropy.reshape(2, 5, 3),
        targets.reshape(2, 5, 3),
    )
    assert computed(*images) == pytest.approx(computed(log_probabilities, expected_entropy, targets), abs=1e-12)


def test_a_calibrated_predictive_has_calibration_errors_within_sampling_noise() -> None:
    """Labels drawn from the predictive itself: E[ECE] is at most sum_b sqrt(n_b a_b (1 - a_b)) / N <= sqrt(B / 4N)."""
    n, bins = 20_000, 15
    generator = torch.Generator().manual_seed(3)
    log_probabilities = (2 * torch.randn(n, 5, generator=generator)).log_softmax(1)
    targets = torch.multinomial(log_probabilities.exp(), 1, generator=generator).squeeze(1)
    expected = -(log_probabilities.exp() * log_probabilities).sum(1)
    noise = math.sqrt(bins / (4 * n))  # 0.0137
    calibrated = computed(log_probabilities, expected, targets, bins)
    assert 0 < calibrated["ece"] < noise
    assert 0 < calibrated["adaptive_ece"] < noise
    # A calibrated predictive's score is its own entropy: the standard error of nll - entropy is below 1 / sqrt(N).
    assert calibrated["nll"] == pytest.approx(calibrated["entropy"], abs=3 / math.sqrt(n))
    overconfident = computed((2 * log_probabilities).log_softmax(1), expected, targets, bins)
    assert overconfident["ece"] > 5 * noise
    assert overconfident["adaptive_ece"] > 5 * noise


def test_mutual_information_of_a_point_estimate_is_zero_and_uniform_entropy_is_log_c() -> None:
    log_probabilities, _, targets = predictive(64, 8, draws=1)
    p = log_probabilities.exp()
    found = computed(log_probabilities, -(p * log_probabilities).sum(1), targets)
    assert found["mutual_information"] == pytest.approx(0, abs=1e-12)
    uniform = torch.full((64, 8), -math.log(8))
    found = computed(uniform, torch.full((64,), math.log(8)), targets)
    assert found["entropy"] == pytest.approx(math.log(8), abs=1e-6)
    assert found["nll"] == pytest.approx(math.log(8), abs=1e-6)
    assert found["brier"] == pytest.approx(1 - 1 / 8, abs=1e-6)


def test_draws_that_are_certain_and_disagree_have_only_mutual_information() -> None:
    """Half of the draws are sure of class 0 and half of class 1: entropy log 2, all of it between the draws."""
    log_probabilities = torch.tensor([[0.5, 0.5, 0.0]]).log().expand(10, 3)
    found = computed(log_probabilities, torch.zeros(10), torch.tensor([0, 1] * 5))
    assert found["entropy"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["mutual_information"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["nll"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_label_of_probability_zero_makes_the_nll_infinite_and_nothing_else() -> None:
    certain = torch.eye(3).log()
    found = computed(certain, torch.zeros(3), torch.tensor([0, 1, 0]))
    assert found["nll"] == math.inf
    assert found["brier"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["entropy"] == 0
    assert found["accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["ece"] == pytest.approx(1 / 3, abs=1e-6)


def test_a_first_batch_that_is_certain_and_right_does_not_tie_the_metrics_together() -> None:
    """NLL, Brier and entropies are all zero then; sharing state by equality would make them one from there on."""
    batch = predictive(100, 3)
    metrics = ClassificationMetrics(3)
    metrics.update(torch.eye(3).log(), torch.zeros(3), torch.arange(3))
    metrics.update(*batch)
    alone = computed(*batch)
    for key in ("nll", "brier", "entropy", "expected_entropy"):
        assert metrics.compute()[key] == pytest.approx(alone[key] * 100 / 103, abs=1e-6)


def test_confidence_one_and_just_below_one_share_the_last_bin() -> None:
    """One row of confidence 1 is wrong, three of .96 are right: apart, MCE would be 1 and ECE .28; together, .22."""
    log_probabilities = torch.tensor([[1.0, 0.0], [0.96, 0.04], [0.96, 0.04], [0.96, 0.04]]).log()
    found = computed(log_probabilities, torch.zeros(4), torch.tensor([1, 0, 0, 0]))
    assert found["mce"] == pytest.approx(0.97 - 0.75, abs=1e-6)
    assert found["ece"] == pytest.approx(0.97 - 0.75, abs=1e-6)


def test_bfloat16_predictions_are_measured_in_float32() -> None:
    log_probabilities, expected_entropy, targets = predictive(4000, 10)
    rounded = log_probabilities.bfloat16(), expected_entropy.bfloat16(), targets
    found = computed(*rounded)
    # The same rounded numbers in float64; sums of 4,000 rows in bfloat16 would be off in the second digit.
    assert found["nll"] == pytest.approx(float(-rounded[0].double().gather(1, targets[:, None]).mean()), abs=1e-5)
    p = rounded[0].double().exp()
    assert found["entropy"] == pytest.approx(float(-(p * p.log()).sum(1).mean()), abs=1e-5)
    assert found["expected_entropy"] == pytest.approx(float(rounded[1].double().mean()), abs=1e-5)


def test_sums_go_on_counting_beyond_the_integers_of_float32() -> None:
    """2**24 + 1 is not a float32; a mean that counts rows in it would drift with the number of pixels."""
    metrics = ClassificationMetrics(2)
    metrics.update(torch.tensor([[0.5, 0.5]]).log(), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    mean = metrics._metrics["nll"]
    mean.weight += 2**24
    metrics.update(torch.tensor([[0.5, 0.5]]).log(), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert float(mean.weight) == 2**24 + 2
    metrics.reset()
    assert mean.weight.dtype == torch.float64


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_outside_the_classes_is_refused_with_its_row_in_the_stream(label: int) -> None:
    log_probabilities, expected_entropy, targets = predictive(10, 3)
    metrics = ClassificationMetrics(3)
    metrics.update(log_probabilities, expected_entropy, targets)
    bad = targets.clone()
    bad[4] = label
    with pytest.raises(ConfigError, match=rf"row 14 has label {label}; labels are 0 to 2"):
        metrics.update(log_probabilities, expected_entropy, bad)
    assert metrics.confidences.shape == (10,)


def test_a_bad_pixel_is_named() -> None:
    log_probabilities = torch.full((2, 3, 4, 5), 1 / 3).log()
    targets = torch.zeros(2, 4, 5, dtype=torch.long)
    targets[1, 2, 3] = 7
    with pytest.raises(ConfigError, match=r"row 1, pixel \(2, 3\), has label 7"):
        ClassificationMetrics(3).update(log_probabilities, torch.zeros(2, 4, 5), targets)


def test_input_that_is_no_predictive_is_refused() -> None:
    log_probabilities, expected_entropy, targets = predictive(6, 3)
    metrics = ClassificationMetrics(3)
    with pytest.raises(ConfigError, match="row 0 sums to"):
        metrics.update(log_probabilities + 1, expected_entropy, targets)
    broken = log_probabilities.clone()
    broken[2, 0] = torch.nan
    with pytest.raises(ConfigError, match="row 2 sums to nan"):
        metrics.update(broken, expected_entropy, targets)
    with pytest.raises(ConfigError, match="expected_entropy: row 0 is nan"):
        metrics.update(log_probabilities, expected_entropy * torch.nan, targets)
    with pytest.raises(ConfigError, match="classes=3"):
        metrics.update(log_probabilities[:, :2], expected_entropy, targets)
    with pytest.raises(ConfigError, match="targets has shape"):
        metrics.update(log_probabilities, expected_entropy, targets[:5])
    with pytest.raises(ConfigError, match="float32"):
        metrics.update(log_probabilities, expected_entropy, targets.float())
    with pytest.raises(ConfigError, match="bins is 0"):
        ClassificationMetrics(3, bins=0)
    with pytest.raises(ConfigError, match="classes is 1"):
        ClassificationMetrics(1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_metrics_of_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="no rows"):
        ClassificationMetrics(3).compute()
    with pytest.raises(ConfigError, match="no rows"):
        ClassificationMetrics(3).reliability_diagram()
