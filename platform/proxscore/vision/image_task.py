"""Image classification as a task: its data, its network, its likelihood and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from proxscore.calibration import ClassificationMetrics
from proxscore.calibration.comparison import Curve, classification_curves
from proxscore.calibration.risk_coverage import area_under_risk_coverage
from proxscore.config import Config, ConfigError
from proxscore.inference import Bernoulli, Categorical
from proxscore.posterior import CategoricalPredictive, predict
from proxscore.vision.data import load_images
from proxscore.vision.models import build_model
from proxscore.vision.preprocessing import resolved
from proxscore.vision.shifts import SHIFTS, ShiftedImages
from proxscore.vision.task import VisionConfig


class ImageTask:
    """Everything about image classification that training, evaluation and tracking need.

    Args:
        config: the task's section of the configuration.
        verify: open every image file once; see :func:`proxscore.vision.data.load_images`.

    Attributes:
        config: with the preparation of images filled in; see :mod:`proxscore.vision.preprocessing`.
        data: train, validation and test datasets, classes, shape, record of the split.
        likelihood: categorical over the logits (B, classes), or Bernoulli of one logit per image (B, 1).
        classes: number of classes.

    Raises:
        ConfigError: what is at fault in the data, in one line.
    """

    headline: tuple[str, ...] = ("accuracy", "nll", "ece", "brier")
    columns: Sequence[tuple[str, str, int]] = (
        ("accuracy", "accuracy", 4),
        ("NLL", "nll", 4),
        ("ECE", "ece", 4),
        ("Brier", "brier", 4),
        ("AURC", "aurc", 4),
        ("NLL, tempered", "nll_tempered", 4),
        ("ECE, tempered", "ece_tempered", 4),
    )
    objectives: Mapping[str, bool] = {
        **dict.fromkeys(("nll", "ece", "brier", "adaptive_ece", "mce"), False),
        "accuracy": True,
    }

    def __init__(self, config: VisionConfig, *, verify: bool = True) -> None:
        self.config = resolved(config)
        self.data = load_images(self.config.data, verify=verify)
        self.classes = len(self.data.classes)
        binary = config.likelihood == "bernoulli"
        if binary and self.classes != 2:
            raise ConfigError(
                f"task.likelihood=bernoulli is one of two classes; the data have {self.classes}: use categorical"
            )
        self.likelihood: Categorical | Bernoulli = Bernoulli() if binary else Categorical()
        self.outputs = 1 if binary else self.classes
        self.predict = partial(predict, likelihood=self.likelihood)

    def check(self, config: Config) -> None:
        """Every setting of a run serves."""

    def build_model(self, device: torch.device | None = None) -> nn.Module:
        """The network for these images and classes; see :func:`proxscore.vision.models.build_model`.

        Args:
            device: the meta device leaves out the numbers, and the configured weights.
        """
        with device or nullcontext():
            return build_model(self.config.model, classes=self.outputs, shape=self.data.shape)

    def example(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch's shape and type, all zero."""
        return torch.zeros(rows, *self.data.shape, device=device), torch.zeros(rows, dtype=torch.long, device=device)

    def judge(
        self, predictive: CategoricalPredictive, bins: int, device: torch.device, title: str
    ) -> tuple[dict[str, float], Callable[[], dict[str, Figure]]]:
        """Metrics over all ranks' rows, with ``bins`` bins of confidence, and the reliability diagram."""
        metrics = ClassificationMetrics(self.classes, bins).to(device)
        if len(predictive.targets):
            metrics.update(predictive.log_probabilities, predictive.expected_entropy, predictive.targets)
        return metrics.compute(), lambda: {"reliability": metrics.reliability_diagram(title=title)}

    def shifted(self, name: str) -> tuple[ShiftedImages, bool]:
        """The test images under a shift, and whether their labels still hold."""
        shift = SHIFTS[name]
        return ShiftedImages(self.data.test, shift), shift.known

    def compared(self, predictive: CategoricalPredictive) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The area under the risk-coverage curve; log-probabilities (N, C) in float32 and targets (N,)."""
        log_confidences, labels = predictive.log_probabilities.max(1)
        confidences, correct = log_confidences.exp().flatten(), (labels == predictive.targets).flatten()
        kept = {"log_probabilities": predictive.log_probabilities.float(), "targets": predictive.targets}
        return {"aurc": area_under_risk_coverage(confidences, correct)}, kept

    def floors(self) -> dict[str, CategoricalPredictive]:
        """None."""
        return {}

    def comparison_figure(self, curves: Sequence[Curve], bins: int) -> Figure:
        """Reliability and risk-coverage curves."""
        return classification_curves(curves, bins)

    @property
    def summary(self) -> str:
        return f"{self.data.splits['counts']}, {self.classes} classes"

    def describe(self) -> dict[str, Any]:
        """What to record of the data: kind, number of classes, shape (C, H, W), and how they were split."""
        return {
            "kind": self.config.data.kind,
            "classes": self.classes,
            "shape": list(self.data.shape),
            "splits": self.data.splits,
        }
