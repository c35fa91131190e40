"""Temperature scaling: the temperature of the smallest NLL on held-out rows, and what it does to a predictive."""

from __future__ import annotations

import pytest
import torch

from proxscore.calibration.temperature import HOTTEST, fit_temperature, tempered
from proxscore.posterior import CategoricalPredictive


def rows(sharpness: float, count: int = 20_000) -> CategoricalPredictive:
    """Labels from softmax(logits), and a predictive whose logits are that many times too large."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 5, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return CategoricalPredictive((sharpness * logits).log_softmax(1), torch.zeros(count), targets)


def nll(predictive: CategoricalPredictive) -> float:
    return -predictive.log_probabilities.gather(1, predictive.targets[:, None]).mean().item()


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_known_sharpness_and_minimises_the_nll(sharpness: float) -> None:
    predictive = rows(sharpness)
    temperature = fit_temperature(predictive)
    assert temperature == pytest.approx(sharpness, rel=0.05)  # a standard error is about 1 %
    best = nll(tempered(predictive, temperature))
    assert best <= min(nll(tempered(predictive, temperature * factor)) for factor in (0.99, 1.0, 1.01))


def test_a_tempered_predictive_is_normalised_keeps_its_order_and_has_no_draws() -> None:
    predictive = rows(2.0, 100)
    warm = tempered(predictive, 3.0)
    torch.testing.assert_close(warm.mean.sum(1), torch.ones(100))
    assert torch.equal(warm.log_probabilities.argmax(1), predictive.log_probabilities.argmax(1))
    torch.testing.assert_close(warm.expected_entropy, -(warm.mean * warm.log_probabilities).sum(1))


def test_probabilities_of_zero_and_rows_that_are_all_correct_are_no_error() -> None:
    logs = torch.tensor([[0.0, -torch.inf], [-0.1, -2.35]]).log_softmax(1)
    temperature = fit_temperature(CategoricalPredictive(logs, torch.zeros(2), torch.tensor([0, 0])))
    assert temperature == pytest.approx(1 / HOTTEST, rel=1e-6)
    assert tempered(CategoricalPredictive(logs, torch.zeros(2), torch.tensor([0, 0])), 2.0).mean.isfinite().all()
