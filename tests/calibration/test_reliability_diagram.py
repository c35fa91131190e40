"""Top-label calibration errors and the numbers that the reliability diagram shows."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import Tensor

from proxscore.calibration import (
    ClassificationMetrics,
    adaptive_calibration_error,
    expected_calibration_error,
    reliability_bins,
    reliability_diagram,
)
from proxscore.config import ConfigError


def rows(n: int = 700, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    confidences = 0.3 + 0.7 * torch.rand(n, generator=generator)
    confidences[:20] = 1.0
    return confidences, torch.rand(n, generator=generator) < confidences**2


def by_histogram(confidences: Tensor, correct: Tensor, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, accuracy and mean confidence per bin, by numpy's histogram (its last bin is closed)."""
    c, hit = confidences.double().numpy(), correct.double().numpy()
    counts, _ = np.histogram(c, bins, (0, 1))
    with np.errstate(invalid="ignore"):
        accuracy = np.histogram(c, bins, (0, 1), weights=hit)[0] / counts
        return counts, accuracy, np.histogram(c, bins, (0, 1), weights=c)[0] / counts


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_bins_equal_a_numpy_histogram(bins: int) -> None:
    confidences, correct = rows()
    table = reliability_bins(confidences, correct, bins=bins)
    counts, accuracy, confidence = by_histogram(confidences, correct, bins)
    assert (table.counts.numpy() == counts).all()
    np.testing.assert_allclose(table.accuracy, accuracy, rtol=1e-12)
    np.testing.assert_allclose(table.confidence, confidence, rtol=1e-12)


def test_bars_gaps_counts_and_errors_in_the_figure_are_the_independent_numbers() -> None:
    confidences, correct = rows()
    counts, accuracy, confidence = by_histogram(confidences, correct, 15)
    figure = reliability_diagram(confidences, correct, title="two moons")
    above, below = figure.axes
    filled = counts > 0
    bars, gaps = above.containers
    np.testing.assert_allclose([bar.get_height() for bar in bars], accuracy[filled], atol=1e-9)
    np.testing.assert_allclose([bar.get_x() for bar in bars], np.arange(15)[filled] / 15, atol=1e-9)
    np.testing.assert_allclose([gap.get_y() for gap in gaps], accuracy[filled], atol=1e-9)
    np.testing.assert_allclose([gap.get_height() for gap in gaps], (confidence - accuracy)[filled], atol=1e-9)
    heights = [bar.get_height() for bar in below.containers[0]]
    assert heights == counts.tolist()
    assert sum(heights) == 700
    gap = np.abs(confidence - accuracy)[filled]
    text = above.texts[0].get_text()
    assert f"{(gap * counts[filled]).sum() / 700:.4f}" in text
    assert f"{gap.max():.4f}" in text
    assert "700" in text
    assert above.get_title() == "two moons"
    image = io.BytesIO()
    figure.savefig(image, format="png")
    assert image.getvalue().startswith(b"\x89PNG")


def test_the_diagram_of_the_metrics_shows_their_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probabilities = torch.randn(60, 3, generator=generator).log_softmax(1)
    targets = torch.randint(3, (60,), generator=generator)
    metrics = ClassificationMetrics(3, bins=5)
    metrics.update(log_probabilities, torch.zeros(60), targets)
    top, labels = log_probabilities.exp().max(1)
    torch.testing.assert_close(metrics.confidences, top)
    assert torch.equal(metrics.correct, labels == targets)
    counts, accuracy, _ = by_histogram(top, labels == targets, 5)
    above, below = metrics.reliability_diagram(title="sixty").axes
    assert [bar.get_height() for bar in below.containers[0]] == counts.tolist()
    np.testing.assert_allclose([bar.get_height() for bar in above.containers[0]], accuracy[counts > 0], atol=1e-6)
    assert f"{metrics.compute()['ece']:.4f}" in above.texts[0].get_text()


def test_adaptive_error_does_not_depend_on_the_order_of_rows_with_equal_confidence() -> None:
    confidences = torch.cat([torch.full((60,), 0.9), torch.full((40,), 1.0)])
    correct = torch.arange(100) % 10 < 7
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    order = torch.cat([shuffled, torch.arange(60, 100)])
    found = adaptive_calibration_error(confidences, correct, bins=15)
    assert adaptive_calibration_error(confidences[order], correct[order], bins=15) == pytest.approx(found, abs=1e-12)
    # Both levels are right 7 times in 10, so their gaps are .2 and .3, whatever the bins cut through.
    assert found == pytest.approx(0.6 * 0.2 + 0.4 * 0.3, abs=1e-6)


def test_adaptive_error_with_one_bin_is_the_mean_gap_and_with_a_bin_per_row_the_mean_residual() -> None:
    confidences, correct = rows(50, seed=1)
    confidences = confidences - torch.arange(50) * 1e-4  # all different
    residual = correct.double() - confidences.double()
    assert adaptive_calibration_error(confidences, correct, bins=1) == pytest.approx(float(residual.mean().abs()))
    for bins in (50, 80):
        assert adaptive_calibration_error(confidences, correct, bins=bins) == pytest.approx(
            float(residual.abs().mean())
        )


def test_confidences_outside_the_unit_interval_are_refused_and_not_squashed() -> None:
    correct = torch.tensor([True, False])
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="row 1 has confidence"):
            expected_calibration_error(torch.tensor([0.5, wrong]), correct)
    with pytest.raises(ConfigError, match="one entry per row"):
        reliability_diagram(torch.tensor([0.5]), correct)
    with pytest.raises(ConfigError, match="no rows"):
        reliability_diagram(torch.tensor([]), torch.tensor([]))
