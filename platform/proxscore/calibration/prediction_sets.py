"""Prediction sets by split conformal prediction: sets of classes that hold the label as often as is asked for.

A score s(x, c) says how little class c fits row x. Of n calibration rows, which neither trained the predictive nor are
tested, the k-th smallest score of a label, k = ceil((n + 1) coverage), is the threshold q; the set of a row is
{c: s(x, c) <= q}. If calibration and test rows are exchangeable, the label is in the set with probability at least
``coverage``, and, where scores have no ties, at most coverage + 1 / (n + 1), on average over rows and calibration sets: not
for each class, nor under a shift.

    LAC   s = 1 - p_c                                 (Sadinle, Lei and Wasserman, arXiv 1609.00451)
    APS   s = sum of p over classes before c + u p_c  (Romano, Sesia and Candes, arXiv 2006.02544)
    RAPS  s = APS + penalty max(0, rank_c - free)     (Angelopoulos et al., arXiv 2009.14193)

with classes in descending order of probability, rank_c from 1, and u uniform in [0, 1], one number for each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.config import ConfigError

METHODS = ("lac", "aps", "raps")
PENALTY, FREE = 0.1, 2  # of RAPS: fixed beforehand, so that no data choose them


def scores_of_classes(method: str, probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(N, C) float64: the score of every class.

    Args:
        method: ``lac``, ``aps`` or ``raps``.
        probabilities: (N, C), of rows that sum to 1.
        uniform: (N,) numbers in [0, 1], independent of everything else; ``lac`` takes none.

    Raises:
        ConfigError: an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r} makes no prediction sets; those that do: {', '.join(METHODS)}")
    probabilities = probabilities.double()
    if method == "lac":
        return 1 - probabilities
    ordered, classes = probabilities.sort(stable=True, dim=1, descending=True)
    scores = ordered.cumsum(1) - ordered + uniform.double().unsqueeze(1) * ordered
    if method == "raps":
        ranks = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        scores = scores + PENALTY * (ranks - FREE).clamp(min=0)
    return torch.empty_like(scores).scatter_(1, classes, scores)


def rows_needed(coverage: float) -> int:
    """The fewest calibration rows n with (n + 1) (1 - coverage) >= 1: with fewer, only the set of all classes is sure."""
    return math.ceil(1 / (1 - coverage) - 1 - 1e-9)


def threshold(label_scores: Tensor, coverage: float) -> float:
    """q of the scores (n,) of the labels of calibration rows.

    Raises:
        ConfigError: a coverage that is not between 0 and 1, or too few rows for it.
    """
    if not 0 < coverage < 1:
        raise ConfigError(f"coverage is {coverage:g}; it must be between 0 and 1")
    if len(label_scores) < (needed := rows_needed(coverage)):
        raise ConfigError(
            f"coverage {coverage:g}: {len(label_scores)} calibration rows are too few for it; {needed} are needed"
        )
    place = math.ceil((len(label_scores) + 1) * coverage - 1e-9)
    return float(label_scores.double().kthvalue(place).values)


@dataclass
class SetSums:
    """Sums over the sets of rows, by class of the label: what is reported of them.

    Attributes:
        rows: (C,) rows of each class.
        covered: (C,) of which the set holds the label.
        sizes: (C + 1,) rows whose set has 0, 1, ..., C classes.
    """

    rows: Tensor
    covered: Tensor
    sizes: Tensor

    @classmethod
    def empty(cls, classes: int) -> SetSums:
        """No rows yet."""
        return cls(*(torch.zeros(size, dtype=torch.float64) for size in (classes, classes, classes + 1)))

    def add(self, sets: Tensor, targets: Tensor) -> None:
        """Add the sets (N, C), bool, of rows with labels (N,)."""
        classes = len(self.rows)
        held = sets.gather(1, targets.unsqueeze(1)).squeeze(1)
        self.rows += torch.bincount(targets, minlength=classes).double()
        self.covered += torch.bincount(targets, held.double(), minlength=classes)
        self.sizes += torch.bincount(sets.sum(1), minlength=classes + 1).double()

    @property
    def coverage(self) -> float:
        """Fraction of rows whose set holds the label."""
        return float(self.covered.sum() / self.rows.sum())

    @property
    def mean_size(self) -> float:
        """Mean number of classes of a set."""
        return float((self.sizes * torch.arange(len(self.sizes))).sum() / self.sizes.sum())


def standard_error(fraction: Tensor | float, rows: Tensor | float) -> Tensor:
    """Binomial standard error sqrt(f (1 - f) / n) of a fraction of n rows; NaN without rows."""
    fraction, rows = torch.as_tensor(fraction, dtype=torch.float64), torch.as_tensor(rows, dtype=torch.float64)
    return (fraction * (1 - fraction) / rows).sqrt()
