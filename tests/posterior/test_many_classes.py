"""A thousand classes and more: nothing of classes times features squared is written out, or a line says what would be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from proxscore.calibration import classification
from proxscore.calibration.classification import ClassificationMetrics
from proxscore.config import ConfigError
from proxscore.inference import FullCovariance, Kronecker, LowRank, ProximalScore
from proxscore.inference.layout import Layout
from proxscore.posterior import Posterior
from proxscore.posterior.joint import Joint
from proxscore.tasks.predictions import ClassPrediction


def test_a_covariance_over_a_thousand_classes_is_refused_with_its_size() -> None:
    layer = nn.Linear(768, 1000)
    with pytest.raises(ValueError, match=r"769,000 numbers .* need a 769,000 x 769,000 covariance; .* kronecker"):
        ProximalScore(layer.named_parameters(), data_size=10, family=FullCovariance())
    with pytest.raises(ValueError, match=r"a matrix of 30,000 x 4, and its factors would be 30,000 x 30,000"):
        Kronecker().check("head.weight", torch.Size([30_000, 4]), 120_000)
    Kronecker().check("head.weight", torch.Size([1000, 768]), 768_000)


def test_the_covariance_of_a_few_of_many_numbers_takes_these_alone() -> None:
    """A million numbers in one block: its covariance would take four terabytes."""
    generator = torch.Generator().manual_seed(0)
    mean = {"weight": torch.zeros(1000, 1000), "bias": torch.zeros(7)}
    size = 1_000_007
    state = {
        "mean": torch.zeros(size),
        "variance": torch.rand(size, generator=generator) + 0.1,
        "factor": torch.randn(size, 2, generator=generator),
    }
    members = [(name, value, 0) for name, value in mean.items()]
    posterior = Posterior(mean, joint=[Joint(Layout(LowRank(2), members), state)])
    expected = state["variance"][-7:].diag() + state["factor"][-7:] @ state["factor"][-7:].mT
    torch.testing.assert_close(posterior.covariance(["bias"]), expected)
    with pytest.raises(ConfigError, match="a covariance of 1,000,000 numbers is too large to write out"):
        posterior.covariance(["weight"])


def test_metrics_of_many_classes_are_those_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logs = torch.randn(50, 1000, generator=generator).log_softmax(1)
    labels = torch.randint(1000, (50,), generator=generator)
    entropies = -(logs.exp() * logs).sum(1)
    whole, parts = ClassificationMetrics(1000), ClassificationMetrics(1000)
    whole.update(logs, entropies, labels)
    monkeypatch.setattr(classification, "MOST_NUMBERS", 7_000)
    parts.update(logs, entropies, labels)
    one, other = whole.compute(), parts.compute()
    assert one == pytest.approx(other)
    broken = labels.clone()
    broken[33] = 1000
    with pytest.raises(ConfigError, match="row 83"):
        parts.update(logs, entropies, broken)


def test_sets_of_many_classes_are_those_by_definition() -> None:
    probabilities = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)
    names = tuple(str(k) for k in range(1000))
    found = ClassPrediction(4, 0, probabilities, torch.zeros(20), names, {"0.9": 0.01}).sets(0.9)
    for row, held in zip(probabilities.tolist(), found, strict=True):
        assert held == tuple(names[k] for k in sorted(range(1000), key=lambda k: -row[k]) if row[k] >= 0.01)
