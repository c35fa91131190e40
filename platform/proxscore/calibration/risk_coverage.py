"""Selective prediction: the error among the rows of which a classifier is most confident, as their share grows.

    risk_k = errors among the k most confident rows / k,    coverage_k = k / N,    AURC = 1/N sum_k risk_k

El-Yaniv and Wiener, On the foundations of noise-free selective classification (JMLR, 2010); AURC: Geifman, Uziel and
El-Yaniv, Bias-reduced uncertainty estimation for deep neural classifiers, arXiv 1805.08206. Rows of equal confidence count
in the mean over their orders: a saturated network has many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from proxscore.config import ConfigError


def risk_coverage(confidences: Tensor, correct: Tensor) -> Tensor:
    """(N,) float64, the risk at coverages 1/N, 2/N, ..., 1.

    Args:
        confidences: (N,), probability of the most probable class.
        correct: (N,), true where that class is the label.

    Raises:
        ConfigError: no rows, or unequal lengths.
    """
    if confidences.shape != correct.shape or confidences.ndim != 1 or not len(confidences):
        shapes = f"{tuple(confidences.shape)} and {tuple(correct.shape)}"
        raise ConfigError(
            f"confidences and correct have shapes {shapes}; both need one entry per row, and there must be rows"
        )
    ordered, order = confidences.sort(descending=True)
    wrong = 1 - correct[order].double()
    _, group, counts = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    mean = torch.zeros(len(counts), dtype=torch.float64, device=wrong.device).index_add_(0, group, wrong) / counts
    ranks = torch.arange(1, len(wrong) + 1, dtype=torch.float64, device=wrong.device)
    return mean[group].cumsum(0) / ranks


def area_under_risk_coverage(confidences: Tensor, correct: Tensor) -> float:
    """AURC, in [0, 1]; small where the classifier errs rarely and is least confident where it does."""
    return float(risk_coverage(confidences, correct).mean())


def accuracy_at_coverages(confidences: Tensor, correct: Tensor, coverages: Sequence[float]) -> list[float]:
    """Accuracy among the ceil(coverage * N) most confident rows, for each coverage in (0, 1]; errors as above."""
    risks = risk_coverage(confidences, correct)
    return [1 - float(risks[math.ceil(coverage * len(risks) - 1e-9) - 1]) for coverage in coverages]
