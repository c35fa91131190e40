"""Quantiles of samples against numpy and against what they promise: how often a new value lies below them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gluonts.ev import stats as gluonts_stats
from scipy import stats

from proxscore.calibration.quantiles import central, interval_score, pinball_loss, sample_quantiles
from proxscore.config import ConfigError


@pytest.mark.parametrize("count", [39, 40, 137])
def test_quantiles_are_numpys_weibull_quantiles(count: int) -> None:
    samples = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probabilities = (0.5, 0.025, 0.975, 0.1, 1 / 3)
    expected = np.quantile(samples.numpy(), probabilities, axis=0, method="weibull")
    np.testing.assert_allclose(sample_quantiles(samples, probabilities), expected, rtol=1e-12, atol=1e-14)


def test_intervals_of_few_samples_cover_as_often_as_they_say() -> None:
    values = torch.randn(40, 100_000, generator=torch.Generator().manual_seed(0))
    for level in (0.5, 0.8, 0.95):
        lower, upper = sample_quantiles(values[1:], central(level))
        coverage = float(((values[0] >= lower) & (values[0] <= upper)).double().mean())
        assert coverage == pytest.approx(level, abs=4 * (level * (1 - level) / 100_000) ** 0.5)


def test_losses_are_those_of_gluonts() -> None:
    generator = np.random.default_rng(0)
    y, lower, width = generator.normal(size=50), generator.normal(size=50), generator.exponential(size=50)
    data = {"label": y, "0.3": lower, "seasonal_error": 2.0, "0.05": lower, "0.95": lower + width}
    as_tensor = {name: torch.as_tensor(values) for name, values in data.items()}
    np.testing.assert_allclose(
        2 * pinball_loss(as_tensor["0.3"], as_tensor["label"], 0.3), gluonts_stats.quantile_loss(data, 0.3)
    )
    np.testing.assert_allclose(
        interval_score(as_tensor["0.05"], as_tensor["0.95"], as_tensor["label"], 0.9) / 2,
        gluonts_stats.scaled_interval_score(data, 0.1),
    )


def test_true_quantiles_minimise_the_expected_losses() -> None:
    y = torch.as_tensor(stats.norm.ppf((np.arange(4000) + 0.5) / 4000))
    for probability in (0.1, 0.8):
        best = float(stats.norm.ppf(probability))
        losses = [float(pinball_loss(torch.tensor(best + s), y, probability).mean()) for s in (-0.1, 0.0, 0.1)]
        assert min(losses) == losses[1]
    lower, upper = (torch.tensor(stats.norm.ppf(p)) for p in central(0.8))
    scores = [float(interval_score(s * lower, s * upper, y, 0.8).mean()) for s in (0.9, 1.0, 1.1)]
    assert min(scores) == scores[1]


def test_quantiles_beyond_the_samples_and_wrong_probabilities_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"38 are too few for the 0.025 quantile, which needs at least 39"):
        sample_quantiles(torch.zeros(38, 2), central(0.95))
    sample_quantiles(torch.zeros(39, 2), central(0.95))
    sample_quantiles(torch.zeros(9, 2), (0.1, 0.9))
    for wrong, match in (((0.0,), "has 0"), ((1.5,), "has 1.5"), ((), "at least one"), ((0.5, 0.5), "none twice")):
        with pytest.raises(ConfigError, match=match):
            sample_quantiles(torch.zeros(99, 2), wrong)
