"""Risk-coverage curves against their definition, ties included."""

from __future__ import annotations

import itertools

import pytest
import torch

from proxscore.calibration.risk_coverage import accuracy_at_coverages, area_under_risk_coverage, risk_coverage
from proxscore.config import ConfigError


def test_the_risk_is_the_error_among_the_most_confident_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    confidences, correct = torch.rand(200, generator=generator), torch.rand(200, generator=generator) < 0.7
    risks = risk_coverage(confidences, correct)
    threshold = confidences.sort(descending=True).values
    for k in range(1, 201):
        accepted = confidences >= threshold[k - 1]
        assert accepted.sum() == k
        assert risks[k - 1].item() == pytest.approx(1 - correct[accepted].double().mean().item())
    assert area_under_risk_coverage(confidences, correct) == pytest.approx(risks.mean().item())


def test_rows_of_equal_confidence_count_in_the_mean_over_their_orders() -> None:
    confidences = torch.tensor([0.5, 0.9, 0.9, 0.9, 0.5])
    correct = torch.tensor([True, True, False, False, False])
    expected = torch.zeros(5, dtype=torch.float64)
    orders = [first + last for first in itertools.permutations([1, 2, 3]) for last in itertools.permutations([0, 4])]
    for order in orders:
        wrong = 1 - correct[list(order)].double()
        expected += wrong.cumsum(0) / torch.arange(1, 6) / len(orders)
    torch.testing.assert_close(risk_coverage(confidences, correct), expected)


def test_lengths_that_differ_and_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="one entry per row"):
        risk_coverage(torch.rand(3), torch.ones(2))
    with pytest.raises(ConfigError, match="must be rows"):
        risk_coverage(torch.rand(0), torch.ones(0))


def test_accuracy_at_a_coverage_is_that_of_the_most_confident_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    confidences = torch.rand(97, generator=generator)
    correct = torch.rand(97, generator=generator) < confidences
    order = confidences.argsort(descending=True)
    expected = [correct[order[:count]].double().mean().item() for count in (49, 78, 97)]
    assert accuracy_at_coverages(confidences, correct, (0.5, 0.8, 1.0)) == pytest.approx(expected)
