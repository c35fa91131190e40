"""Top-label calibration: confidence against accuracy, in bins of equal width and of equal mass.

Every function takes two tensors with one entry per row, in any order: ``confidences`` (N,), the probability of the
most probable class, in [0, 1], and ``correct`` (N,), true where that class is the label. Sums are in float64, so that
millions of pixels count as well as hundreds of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proxscore.config import ConfigError

# torchmetrics bins [a, b) and gives a confidence of exactly 1 a bin of its own, which a saturated network fills;
# one step below 1 in float64 is in the last bin, where the definition has it.
_BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True)
class ReliabilityBins:
    """What the rows of each of B confidence bins have in common; ``accuracy`` and ``confidence`` are NaN without rows.

    Attributes:
        edges: (B + 1,) float64, from 0 to 1 in equal steps; bin b is [edges[b], edges[b + 1]), the last one closed.
        counts: (B,) long, rows per bin.
        accuracy: (B,) float64, fraction of the bin's rows that are correct.
        confidence: (B,) float64, mean confidence of the bin's rows.
    """

    edges: Tensor
    counts: Tensor
    accuracy: Tensor
    confidence: Tensor


def reliability_bins(confidences: Tensor, correct: Tensor, *, bins: int = 15) -> ReliabilityBins:
    """Counts, accuracy and mean confidence in ``bins`` bins of equal width (Niculescu-Mizil and Caruana, 2005).

    Raises:
        ConfigError: no rows, unequal lengths, confidences outside [0, 1] (or NaN), or ``bins`` below 1.
    """
    confidences, correct = _rows(confidences, correct, bins)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidences.device)
    index = torch.bucketize(confidences, edges, right=True) - 1
    counts = torch.bincount(index, minlength=bins)
    return ReliabilityBins(
        edges=edges,
        counts=counts,
        accuracy=torch.bincount(index, correct, minlength=bins) / counts,
        confidence=torch.bincount(index, confidences, minlength=bins) / counts,
    )


def expected_calibration_error(confidences: Tensor, correct: Tensor, *, bins: int = 15) -> float:
    """ECE = sum_b n_b / N |accuracy_b - confidence_b| over bins of equal width (Naeini et al., 2015; Guo et al., 2017).

    In [0, 1]; biased upwards by about sum_b sqrt(2 n_b a_b (1 - a_b) / pi) / N for a calibrated predictive.
    Errors as :func:`reliability_bins`.
    """
    confidences, correct = _rows(confidences, correct, bins)
    return _binned("l1", confidences, correct, bins)


def maximum_calibration_error(confidences: Tensor, correct: Tensor, *, bins: int = 15) -> float:
    """MCE = max_b |accuracy_b - confidence_b| over the bins of equal width that hold rows (Naeini et al., 2015).

    In [0, 1]; a bin of a single row counts like any other. Errors as :func:`reliability_bins`.
    """
    confidences, correct = _rows(confidences, correct, bins)
    return _binned("max", confidences, correct, bins)


def _binned(norm: Literal["l1", "max"], confidences: Tensor, correct: Tensor, bins: int) -> float:
    from torchmetrics.functional.classification import binary_calibration_error  # here: the library takes seconds

    return float(binary_calibration_error(confidences, correct, n_bins=bins, norm=norm, validate_args=False))


def adaptive_calibration_error(confidences: Tensor, correct: Tensor, *, bins: int = 15) -> float:
    """Adaptive ECE: sum_b n_b / N |accuracy_b - confidence_b| over bins of equal mass of the sorted confidences.

    The top-label form of the adaptive calibration error of Nixon et al. (2019), "Measuring calibration in deep
    learning". Bin b holds the sorted rows floor(b N / B) to floor((b + 1) N / B) - 1. Rows of equal confidence have no
    order of their own, so each counts as the mean correctness of all of them: the result does not depend on the order
    of the rows, nor on the rank that held them. In [0, 1]; errors as :func:`reliability_bins`.
    """
    confidences, correct = _rows(confidences, correct, bins)
    levels, level, ties = torch.unique(confidences, return_inverse=True, return_counts=True)
    gap_of_level = torch.bincount(level, correct) / ties - levels
    running = torch.cat([gap_of_level.new_zeros(1), gap_of_level.repeat_interleave(ties).cumsum(0)])
    boundaries = torch.arange(bins + 1, device=running.device) * len(confidences) // bins
    return float(running[boundaries].diff().abs().sum() / len(confidences))


def _rows(confidences: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Both as flat float64, with confidences of exactly 1 one step below it."""
    if bins < 1:
        raise ConfigError(f"bins is {bins}; a calibration error needs at least 1 bin")
    if confidences.shape != correct.shape:
        shapes = f"{tuple(confidences.shape)} and {tuple(correct.shape)}"
        raise ConfigError(f"confidences and correct have shapes {shapes}; both need one entry per row")
    if confidences.numel() == 0:
        raise ConfigError("no rows to measure calibration on; update with at least one")
    confidences, correct = confidences.detach().flatten().double(), correct.detach().flatten().double()
    outside = ~((confidences >= 0) & (confidences <= 1))
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ConfigError(f"row {row} has confidence {float(confidences[row]):g}; a probability lies in [0, 1]")
    return confidences.clamp(max=_BELOW_ONE), correct
