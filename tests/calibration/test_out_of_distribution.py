"""Detection of rows of other kinds against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor

from proxscore.calibration.out_of_distribution import detection
from proxscore.config import ConfigError


def scores(ties: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(500, generator=generator), 1 + 1.5 * torch.randn(300, generator=generator)
    return (inside.round(), outside.round()) if ties else (inside, outside)


@pytest.mark.parametrize("ties", [False, True])
def test_measures_are_those_of_scikit_learn(ties: bool) -> None:
    inside, outside = scores(ties)
    found = detection(inside, outside)
    values = torch.cat([inside, outside]).double().numpy()
    is_outside = np.repeat([0, 1], [500, 300])
    assert found.auroc == pytest.approx(sklearn.metrics.roc_auc_score(is_outside, values))
    assert found.aupr_out == pytest.approx(sklearn.metrics.average_precision_score(is_outside, values))
    assert found.aupr_in == pytest.approx(sklearn.metrics.average_precision_score(1 - is_outside, -values))
    false, true, _ = sklearn.metrics.roc_curve(1 - is_outside, -values, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(false[np.argmax(true >= 0.95)])


def test_separate_scores_are_perfect_and_equal_ones_are_chance() -> None:
    low, high = torch.zeros(40), torch.ones(10)
    assert vars(detection(low, high)) == {"auroc": 1.0, "aupr_out": 1.0, "aupr_in": 1.0, "fpr95": 0.0}
    same = detection(low, torch.zeros(10))
    assert (same.auroc, same.fpr95) == (0.5, 1.0)
    assert (same.aupr_out, same.aupr_in) == pytest.approx((0.2, 0.8))


def test_no_rows_and_nan_are_refused() -> None:
    with pytest.raises(ConfigError, match="outside: no rows"):
        detection(torch.zeros(3), torch.zeros(0))
    with pytest.raises(ConfigError, match="inside: the score of row 1 is NaN"):
        detection(torch.tensor([0.0, torch.nan]), torch.zeros(2))
