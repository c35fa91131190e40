"""How well predictive distributions describe what happened: metrics that stream over batches and ranks, and figures."""

from proxscore.calibration.calibration_error import (
    ReliabilityBins,
    adaptive_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)
from proxscore.calibration.classification import ClassificationMetrics, brier_score, entropy, negative_log_likelihood
from proxscore.calibration.crps import crps_gaussian, crps_samples, crps_student_t
from proxscore.calibration.forecast_figures import (
    coverage_against_nominal,
    error_by_horizon,
    fan_chart,
    pit_histogram,
)
from proxscore.calibration.forecasting import ForecastMetrics
from proxscore.calibration.pit import Uniformity, pit_counts, pit_values, uniformity
from proxscore.calibration.quantiles import interval_score, pinball_loss, sample_quantiles
from proxscore.calibration.reliability import reliability_diagram
from proxscore.calibration.seasonal_error import seasonal_error

__all__ = [
    "ClassificationMetrics",
    "ForecastMetrics",
    "ReliabilityBins",
    "Uniformity",
    "adaptive_calibration_error",
    "brier_score",
    "coverage_against_nominal",
    "crps_gaussian",
    "crps_samples",
    "crps_student_t",
    "entropy",
    "error_by_horizon",
    "expected_calibration_error",
    "fan_chart",
    "interval_score",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "pinball_loss",
    "pit_counts",
    "pit_histogram",
    "pit_values",
    "reliability_bins",
    "reliability_diagram",
    "sample_quantiles",
    "seasonal_error",
    "uniformity",
]
