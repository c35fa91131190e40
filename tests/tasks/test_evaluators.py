"""The evaluation of labels and of numbers, against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score

from proxscore.posterior import GaussianPredictive, MultiLabelPredictive
from proxscore.tasks import MultiLabelEvaluator, RegressionEvaluator

CPU = torch.device("cpu")


def test_labels_are_evaluated_as_by_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(200, 4, generator=generator)
    y = (torch.rand(200, 4, generator=generator) < p).long()
    density = torch.where(y.bool(), p, 1 - p).log().sum(1)
    predictive = MultiLabelPredictive(p, torch.zeros(200), density, y)
    values, figures = MultiLabelEvaluator(4).evaluate(predictive, 15, CPU, "labels")
    assert values["map"] == pytest.approx(average_precision_score(y, p, average="macro"), abs=1e-6)
    assert values["f1"] == pytest.approx(f1_score(y, p > 0.5, average="micro"), abs=1e-6)
    assert values["exact"] == pytest.approx(((p > 0.5) == y.bool()).all(1).float().mean().item())
    assert values["nll"] == pytest.approx(-density.mean().item(), rel=1e-6)
    assert values["brier"] == pytest.approx(((p - y) ** 2).mean().item(), rel=1e-6)
    # probabilities that are right: the binned error is that of 800 coin tosses, about 15 sqrt(p (1 - p) / 53) / 15 on average
    assert values["ece"] < 0.08
    assert values["entropy"] == pytest.approx(stats.bernoulli(p.double()).entropy().sum(1).mean(), rel=1e-5)
    wrong, _ = MultiLabelEvaluator(4).evaluate(MultiLabelPredictive(1 - p, torch.zeros(200), density, y), 15, CPU, "")
    assert wrong["ece"] > 0.3
    assert figures().keys() == {"reliability"}


def test_numbers_are_evaluated_as_by_scipy() -> None:
    rng = np.random.default_rng(0)
    mean, noise, epistemic = rng.normal(size=(4000, 1)), rng.uniform(0.5, 2, (4000, 1)), rng.uniform(0, 1, (4000, 1))
    sd = np.sqrt(noise + epistemic)
    y = mean + sd * rng.normal(size=(4000, 1))
    density = stats.norm(mean, sd).logpdf(y).sum(1)
    tensors = [torch.from_numpy(column) for column in (mean, noise, epistemic, density, y)]
    values, figures = RegressionEvaluator().evaluate(GaussianPredictive(*tensors), 15, CPU, "numbers")
    assert values["rmse"] == pytest.approx(np.sqrt(np.mean((y - mean) ** 2)))
    assert values["nll"] == pytest.approx(-density.mean())
    assert values["epistemic_share"] == pytest.approx(epistemic.mean() / (sd**2).mean())
    for level in (0.5, 0.9):  # four standard errors of a binomial fraction
        error = 4 * np.sqrt(level * (1 - level) / 4000)
        assert values[f"coverage_{100 * level:.0f}"] == pytest.approx(level, abs=error)
        low, high = stats.norm(mean, sd).interval(level)
        assert values[f"coverage_{100 * level:.0f}"] == pytest.approx(((y > low) & (y < high)).mean())
    assert figures().keys() == {"predictions"}
