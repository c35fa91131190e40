"""The evaluation of classification, whatever is classified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxscore.calibration import ClassificationMetrics
from proxscore.calibration.comparison import Curve, classification_curves
from proxscore.calibration.risk_coverage import area_under_risk_coverage
from proxscore.posterior import CategoricalPredictive
from proxscore.tasks.evaluator import Evaluator, Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ClassificationEvaluator(Evaluator):
    """Evaluates by accuracy, NLL, calibration errors and Brier score; draws reliability and risk-coverage curves.

    Args:
        classes: number of classes, at least 2.
    """

    headline = ("accuracy", "nll", "ece", "brier")
    columns = (
        ("accuracy", "accuracy", 4),
        ("NLL", "nll", 4),
        ("ECE", "ece", 4),
        ("ECE, all classes", "ece_all_classes", 5),
        ("Brier", "brier", 4),
        ("AURC", "aurc", 4),
        ("NLL, tempered", "nll_tempered", 4),
        ("ECE, tempered", "ece_tempered", 4),
    )
    objectives: Mapping[str, bool] = {
        **dict.fromkeys(("nll", "ece", "brier", "adaptive_ece", "mce"), False),
        "accuracy": True,
    }

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def evaluate(
        self, predictive: CategoricalPredictive, bins: int, device: torch.device, title: str
    ) -> tuple[dict[str, float], Figures]:
        """Metrics over all workers' rows, with ``bins`` bins of confidence, and the reliability diagram."""
        metrics = ClassificationMetrics(self.classes, bins).to(device)
        if len(predictive.targets):
            metrics.update(predictive.log_probabilities, predictive.expected_entropy, predictive.targets)
        return metrics.compute(), lambda: {"reliability": metrics.reliability_diagram(title=title)}

    def compared(self, predictive: CategoricalPredictive) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The area under the risk-coverage curve; log-probabilities (N, C) in float32 and targets (N,)."""
        log_confidences, labels = predictive.log_probabilities.max(1)
        confidences, correct = log_confidences.exp().flatten(), (labels == predictive.targets).flatten()
        kept = {"log_probabilities": predictive.log_probabilities.float(), "targets": predictive.targets}
        return {"aurc": area_under_risk_coverage(confidences, correct)}, kept

    def comparison_figure(self, curves: Sequence[Curve], bins: int) -> Figure:
        """Reliability and risk-coverage curves."""
        return classification_curves(curves, bins)
