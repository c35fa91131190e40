"""Image classification as a task: its data, its network, its likelihood and its metrics."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.calibration import ClassificationMetrics
from proxscore.config import VisionConfig
from proxscore.inference import Categorical
from proxscore.vision.data import load_images
from proxscore.vision.models import build_model


class VisionTask:
    """Everything about image classification that training, evaluation and tracking need.

    Args:
        config: the task's section of the configuration.
        verify: open every image file once; see :func:`proxscore.vision.data.load_images`.

    Attributes:
        data: train, validation and test datasets, classes, shape, record of the split.
        likelihood: categorical over the logits (B, classes).
        classes: number of classes.

    Raises:
        ConfigError: what is at fault in the data, in one line.
    """

    def __init__(self, config: VisionConfig, *, verify: bool = True) -> None:
        self.config = config
        self.data = load_images(config.data, verify=verify)
        self.likelihood = Categorical()
        self.classes = len(self.data.classes)

    def build_model(self, device: torch.device | None = None) -> nn.Module:
        """The network for these images and classes; see :func:`proxscore.vision.models.build_model`.

        Args:
            device: the meta device leaves out the numbers, and the configured weights.
        """
        with device or nullcontext():
            return build_model(self.config.model, classes=self.classes, shape=self.data.shape)

    def example(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch's shape and type, all zero."""
        return torch.zeros(rows, *self.data.shape, device=device), torch.zeros(rows, dtype=torch.long, device=device)

    def metrics(self, bins: int = 15) -> ClassificationMetrics:
        """Fresh metrics of predictions over these classes; calibration errors use ``bins`` bins of confidence."""
        return ClassificationMetrics(self.classes, bins)

    def describe(self) -> dict[str, Any]:
        """What to record of the data: kind, number of classes, shape (C, H, W), and how they were split."""
        return {
            "kind": self.config.data.kind,
            "classes": self.classes,
            "shape": list(self.data.shape),
            "splits": self.data.splits,
        }
