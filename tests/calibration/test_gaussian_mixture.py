"""Quantiles of a mixture of Gaussians: of one component scipy's, of several the samples' (binomial error)."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from proxscore.calibration.gaussian_mixture import quantiles
from proxscore.config import ConfigError


def test_one_component_is_its_own() -> None:
    means, sds = torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, 0.5]])
    for q, found in zip((0.01, 0.5, 0.9), quantiles(means, sds, (0.01, 0.5, 0.9)), strict=True):
        assert found.tolist() == pytest.approx(stats.norm.ppf(q, means[0], sds[0]).tolist(), abs=1e-9)


def test_as_many_samples_lie_below_as_it_says() -> None:
    torch.manual_seed(0)
    means, sds = torch.tensor([[-4.0], [0.0], [5.0]]), torch.tensor([[1.0], [0.3], [2.0]])
    count = 300_000
    component = torch.randint(3, (count,))
    samples = means[component, 0] + sds[component, 0] * torch.randn(count)
    for q in (0.05, 0.3, 0.5, 0.95):
        below = (samples < quantiles(means, sds, [q])[0, 0]).double().mean().item()
        assert abs(below - q) < 4 * math.sqrt(q * (1 - q) / count)


def test_no_noise_and_wrong_probabilities() -> None:
    means = torch.tensor([[1.0], [1.0]])
    assert quantiles(means, torch.zeros(2, 1), (0.1, 0.9)).flatten().tolist() == [1.0, 1.0]
    with pytest.raises(ConfigError, match="quantiles has 1"):
        quantiles(means, means, (1.0,))
