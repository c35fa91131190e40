"""How well a score tells rows of other data from those of the test data: detection as a ranking of the two.

A score is larger for rows that look less like the training data. Sources of the measures: Hendrycks and Gimpel, A baseline
for detecting misclassified and out-of-distribution examples (arXiv 1610.02136).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.config import ConfigError

KEPT = 0.95


@dataclass(frozen=True)
class Detection:
    """How a score separates outside rows from inside rows. All are in [0, 1].

    Attributes:
        auroc: probability that an outside row has the larger score, where ties count one half; 0.5 is chance.
        aupr_out: average precision with outside rows as the ones to find, largest scores first; chance is their share.
        aupr_in: the same with inside rows as the ones to find, smallest scores first.
        fpr95: fraction of outside rows that pass for inside where the threshold lets at least 95% of inside rows pass.
    """

    auroc: float
    aupr_out: float
    aupr_in: float
    fpr95: float


def detection(inside: Tensor, outside: Tensor) -> Detection:
    """Compare the scores (N,) of inside rows with those (M,) of outside rows, in float64.

    Raises:
        ConfigError: no rows on one side, or a score that is NaN.
    """
    inside, outside = inside.detach().double().flatten().cpu(), outside.detach().double().flatten().cpu()
    for name, scores in (("inside", inside), ("outside", outside)):
        if not len(scores):
            raise ConfigError(f"{name}: no rows to compare scores of; give at least one")
        if scores.isnan().any():
            raise ConfigError(f"{name}: the score of row {int(scores.isnan().nonzero()[0])} is NaN")
    found, false = _counts(outside, inside)  # as the threshold falls, by distinct scores
    rate_found, rate_false = (
        torch.cat([values.new_zeros(1), values]) for values in (found / found[-1], false / false[-1])
    )
    auroc = float(torch.trapezoid(rate_found, rate_false))
    kept, passing = _counts(-inside, -outside)
    passed = passing[int((kept / kept[-1] >= KEPT).nonzero()[0])] / passing[-1]
    return Detection(auroc, _average_precision(found, false), _average_precision(kept, passing), float(passed))


def _counts(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative rows at or above each distinct score, from the largest score down."""
    scores = torch.cat([positive, negative])
    _, level = torch.unique(scores, return_inverse=True)
    is_positive = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
    hits = torch.bincount(level, is_positive).flip(0).cumsum(0)
    return hits, torch.bincount(level).double().flip(0).cumsum(0) - hits


def _average_precision(found: Tensor, false: Tensor) -> float:
    """sum_k (recall_k - recall_{k-1}) precision_k: the step-wise area that scikit-learn calls average precision."""
    gained = found.diff(prepend=found.new_zeros(1)) / found[-1]
    return float((gained * found / (found + false)).sum())
