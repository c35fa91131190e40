"""How well predictive distributions describe what happened: metrics that stream over batches and ranks, and figures."""

from proxscore.calibration.calibration_error import (
    ReliabilityBins,
    adaptive_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)
from proxscore.calibration.classification import ClassificationMetrics, brier_score, entropy, negative_log_likelihood
from proxscore.calibration.reliability import reliability_diagram

__all__ = [
    "ClassificationMetrics",
    "ReliabilityBins",
    "adaptive_calibration_error",
    "brier_score",
    "entropy",
    "expected_calibration_error",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "reliability_bins",
    "reliability_diagram",
]
