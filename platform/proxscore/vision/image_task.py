"""Image classification as a task: its data, its network and its likelihood."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference import Bernoulli, Categorical
from proxscore.tasks import ClassificationEvaluator, Task
from proxscore.vision.data import load_images
from proxscore.vision.images import Normalisation
from proxscore.vision.models import build_model
from proxscore.vision.preprocessing import resolved
from proxscore.vision.ray_data import Share, StreamedRows
from proxscore.vision.shifts import ShiftedImages, shift_named
from proxscore.vision.task import VisionConfig


class ImageTask(Task):
    """Images, and a network that tells their classes.

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
        self.evaluator = ClassificationEvaluator(self.classes)

    def build_model(self, device: torch.device | None = None) -> nn.Module:
        """The network for these images and classes; see :func:`proxscore.vision.models.build_model`.

        Args:
            device: the meta device leaves out the numbers, and the configured weights.
        """
        with device or nullcontext():
            return build_model(self.config.model, classes=self.outputs, shape=self.data.shape)

    def streamed_rows(self, workers: int, cpus_per_worker: float) -> StreamedRows:
        return StreamedRows(self.data.train, Share.of(workers, cpus_per_worker))

    def example(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch's shape and type, all zero."""
        return torch.zeros(rows, *self.data.shape, device=device), torch.zeros(rows, dtype=torch.long, device=device)

    @property
    def normalisation(self) -> Normalisation:
        """How pixels in [0, 1] become the network's inputs."""
        return Normalisation.of(self.config.data.mean, self.config.data.std, self.data.shape[0])

    def shifted(self, name: str) -> tuple[ShiftedImages, bool]:
        """The test images under a shift, and whether their labels still hold."""
        shift = shift_named(name, self.normalisation)
        return ShiftedImages(self.data.test, shift), shift.known

    @property
    def summary(self) -> str:
        """The data in a line."""
        return f"{self.data.splits['counts']}, {self.classes} classes"

    def describe(self) -> dict[str, Any]:
        """What to record of the data: kind, number of classes, shape (C, H, W), and how they were split."""
        return {
            "kind": self.config.data.kind,
            "classes": self.classes,
            "shape": list(self.data.shape),
            "splits": self.data.splits,
        }
