"""Prediction sets: their guarantee on exchangeable rows, and against MAPIE and the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from proxscore.calibration.prediction_sets import (
    FREE,
    METHODS,
    PENALTY,
    SetSums,
    rows_needed,
    scores_of_classes,
    standard_error,
    threshold,
)
from proxscore.config import ConfigError


def rows(count: int, seed: int, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities that are far too sure, labels, and uniform numbers."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return (4 * logits).softmax(1), labels, torch.rand(count, generator=generator, dtype=torch.float64)


def label_scores(method: str, probabilities: Tensor, labels: Tensor, uniform: Tensor) -> Tensor:
    return scores_of_classes(method, probabilities, uniform).gather(1, labels.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("calibration", "coverage"), [(19, 0.9), (60, 0.9), (60, 0.7)])
def test_coverage_is_at_least_what_was_asked_and_at_most_a_rank_more(
    method: str, calibration: int, coverage: float
) -> None:
    """Over many calibration sets: their mean lies in [coverage, coverage + 1 / (n + 1)], however bad the probabilities are."""
    trials, tested = 2000, 20
    covered = []
    probabilities, labels, uniform = rows(trials * (calibration + tested), seed=calibration)
    scores = label_scores(method, probabilities, labels, uniform).view(trials, -1)
    for own in scores:
        covered.append(float((own[calibration:] <= threshold(own[:calibration], coverage)).double().mean()))
    error = np.std(covered) / trials**0.5
    exact = np.ceil((calibration + 1) * coverage - 1e-9) / (calibration + 1)
    assert np.mean(covered) == pytest.approx(exact, abs=4 * error)
    assert coverage <= exact <= coverage + 1 / (calibration + 1)


def test_lac_sets_are_those_of_mapie() -> None:
    mapie = pytest.importorskip("mapie.classification")
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    x = generator.normal(size=(700, 3))
    y = (x + generator.normal(size=x.shape)).argmax(1)
    model = LogisticRegression(C=100).fit(x[:200], y[:200])
    theirs = mapie.SplitConformalClassifier(model, confidence_level=0.9, conformity_score="lac", prefit=True)
    _, sets = theirs.conformalize(x[200:400], y[200:400]).predict_set(x[400:])
    calibration, tested = (torch.from_numpy(model.predict_proba(part)) for part in (x[200:400], x[400:]))
    nothing = torch.zeros(300)
    q = threshold(label_scores("lac", calibration, torch.from_numpy(y[200:400]), nothing), 0.9)
    ours = scores_of_classes("lac", tested, nothing) <= q
    np.testing.assert_array_equal(ours.numpy(), sets[:, :, 0])


def test_scores_are_their_definitions() -> None:
    p = torch.tensor([[0.1, 0.6, 0.3, 0.0]], dtype=torch.float64)
    u = torch.tensor([0.25])
    np.testing.assert_allclose(scores_of_classes("lac", p, u), [[0.9, 0.4, 0.7, 1.0]])
    aps = [0.9 + 0.25 * 0.1, 0.25 * 0.6, 0.6 + 0.25 * 0.3, 1.0]
    np.testing.assert_allclose(scores_of_classes("aps", p, u), [aps])
    beyond = [max(rank - FREE, 0) for rank in (3, 1, 2, 4)]
    expected = [score + PENALTY * rank for score, rank in zip(aps, beyond, strict=True)]
    np.testing.assert_allclose(scores_of_classes("raps", p, u), [expected])


def test_too_few_rows_are_refused_with_the_number_needed() -> None:
    assert [rows_needed(coverage) for coverage in (0.5, 0.9, 0.95, 0.99)] == [1, 9, 19, 99]
    assert threshold(torch.arange(9.0), 0.9) == 8.0
    with pytest.raises(ConfigError, match="8 calibration rows are too few for it; 9 are needed"):
        threshold(torch.arange(8.0), 0.9)
    with pytest.raises(ConfigError, match="coverage is 1"):
        threshold(torch.arange(8.0), 1.0)


def test_sums_over_batches_count_every_set() -> None:
    sets = torch.tensor([[True, False, False], [True, True, False], [False, False, False], [True, True, True]])
    targets = torch.tensor([0, 2, 1, 2])
    sums = SetSums.empty(3)
    for part in (slice(0, 1), slice(1, 4)):
        sums.add(sets[part], targets[part])
    assert sums.rows.tolist() == [1, 1, 2]
    assert sums.covered.tolist() == [1, 0, 1]
    assert sums.sizes.tolist() == [1, 1, 1, 1]
    assert (sums.coverage, sums.mean_size) == (0.5, 1.5)
    assert float(standard_error(sums.coverage, 4)) == 0.25
