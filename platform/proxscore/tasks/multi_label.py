"""The evaluation of several labels per row, each of which may hold or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from proxscore.calibration.calibration_error import expected_calibration_error
from proxscore.calibration.reliability import reliability_diagram
from proxscore.posterior import MultiLabelPredictive
from proxscore.tasks.evaluator import Evaluator, Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MultiLabelEvaluator(Evaluator):
    """Evaluates by NLL, mean average precision, F1 at one half, and the calibration of the labels' probabilities.

    Args:
        labels: number of labels C.
    """

    headline = ("map", "nll", "ece", "f1")
    columns = (
        ("mAP", "map", 4),
        ("NLL", "nll", 4),
        ("ECE", "ece", 4),
        ("F1", "f1", 4),
        ("Brier", "brier", 4),
    )
    objectives: Mapping[str, bool] = {"nll": False, "brier": False, "ece": False, "map": True, "f1": True}

    def __init__(self, labels: int) -> None:
        self.labels = labels

    def evaluate(
        self, predictive: MultiLabelPredictive, bins: int, device: torch.device, title: str
    ) -> tuple[dict[str, float], Figures]:
        """Metrics over all workers' rows, and the reliability diagram of all labels' probabilities.

        Returns:
            map: mean over labels of the average precision.
            nll: nats per row, of all labels together.
            f1: of all decisions at a probability of one half (micro average).
            exact: fraction of rows whose labels are all right.
            ece: of the N x C probabilities as those of the event that the label holds.
            brier: mean over labels of (p - y)^2.
            entropy, expected_entropy, mutual_information: nats per row, of all labels together; the first is the sum over
                labels, an upper bound where draws tie labels to each other.
        """
        from torchmetrics import CatMetric, MeanMetric
        from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

        count = self.labels
        means: dict[str, Any] = {
            name: MeanMetric(nan_strategy="disable").set_dtype(torch.float64).to(device)
            for name in ("nll", "brier", "entropy", "expected_entropy")
        }
        scores: dict[str, Any] = {
            "map": MultilabelAveragePrecision(count, validate_args=False).to(device),
            "f1": MultilabelF1Score(count, average="micro", validate_args=False).to(device),
            "exact": MultilabelExactMatch(count, validate_args=False).to(device),
        }
        rows = CatMetric(nan_strategy="disable").to(device)
        if len(predictive.targets):
            p, y = predictive.probabilities.to(device), predictive.targets.to(device).long()
            means["nll"].update(-predictive.log_density.double().to(device))
            means["brier"].update((p - y).square().mean(1).double())
            means["entropy"].update(_entropy(p).double())
            means["expected_entropy"].update(predictive.expected_entropy.double().to(device))
            for score in scores.values():
                score.update(p, y)
            rows.update(torch.where(y.bool(), p, -p).flatten())
        values = {name: float(metric.compute()) for name, metric in {**scores, **means}.items()}
        signed: Tensor = torch.as_tensor(rows.compute())
        confidences, holds = signed.abs(), ~signed.signbit()
        values["ece"] = expected_calibration_error(confidences, holds, bins=bins)
        values["mutual_information"] = values["entropy"] - values["expected_entropy"]

        def figures() -> dict[str, Figure]:
            return {"reliability": reliability_diagram(confidences, holds, bins=bins, title=title)}

        return values, figures


def _entropy(p: Tensor) -> Tensor:
    """-sum_c (p log p + (1 - p) log (1 - p)) per row, in nats."""
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum(1)
