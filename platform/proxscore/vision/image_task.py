"""Image classification as a task: its data, its network and its likelihood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import Config, ConfigError
from proxscore.inference import HeteroscedasticGaussian
from proxscore.posterior import Posterior
from proxscore.tasks import Task
from proxscore.vision.augmentation import Augmentation, AugmentedImages
from proxscore.vision.data import load_images
from proxscore.vision.images import Normalisation
from proxscore.vision.merging import merged
from proxscore.vision.models import build_model
from proxscore.vision.outcomes import outcome
from proxscore.vision.preprocessing import resolved
from proxscore.vision.ray_data import Share, StreamedRows
from proxscore.vision.shifts import ShiftedImages, shift_named
from proxscore.vision.task import VisionConfig


class ImageTask(Task):
    """Images, and a network that tells their classes.

    Args:
        config: the task's section of the configuration.
        verify: open every image file once; see :func:`proxscore.vision.data.load_images`.
        trained: what a trained network's description says of its data: the units of numbers are theirs.

    Attributes:
        config: with the preparation of images filled in; see :mod:`proxscore.vision.preprocessing`.
        data: train, validation and test datasets, classes, shape, record of the split.
        likelihood: of the network's outputs; see :mod:`proxscore.vision.outcomes`.
        classes: number of classes.

    Raises:
        ConfigError: what is at fault in the data, in one line.
    """

    def __init__(self, config: VisionConfig, *, verify: bool = True, trained: Mapping[str, Any] | None = None) -> None:
        self.config = resolved(config)
        self.data = load_images(self.config.data, verify=verify)
        self.classes = len(self.data.classes)
        self._peak = int(getattr(self.data.train.reader, "peak", 255))
        self._outcome = outcome(config, self.data, trained or {})
        self.likelihood, self.evaluator = self._outcome.likelihood, self._outcome.evaluator
        self.outputs = self._outcome.outputs
        self.augmentation = self._augmentation()

    def _augmentation(self) -> Augmentation | None:
        settings, data = self.config.augmentation.settings, self.config.data
        if not settings:
            return None
        return Augmentation(
            settings, self.data.shape, self.normalisation, getattr(data, "interpolation", None) or "bilinear"
        )

    def build_model(self, device: torch.device | None = None) -> nn.Module:
        """The network for these images and classes; see :func:`proxscore.vision.models.build_model`.

        Args:
            device: the meta device leaves out the numbers, and the configured weights.
        """
        with device or nullcontext():
            return build_model(self.config.model, classes=self.outputs, shape=self.data.shape)

    def saved_as(self, posterior: Posterior, module: nn.Module, seed: int) -> Posterior:
        """The posterior, or, as ``task.model.lora.merged_draws`` has it, that of the network without adapters."""
        lora = self.config.model.lora
        if lora is None or lora.merged_draws is None:
            return posterior
        return merged(posterior, module, lora.merged_draws, seed)

    def check(self, config: Config) -> None:
        super().check(config)
        if config.evaluation.temperature_scaling and self.data.targets != "classes":
            raise ConfigError(
                f"evaluation.temperature_scaling is of classes, and task.likelihood is {self.config.likelihood}: leave it out"
            )
        for name in config.evaluation.shifts:
            if self.data.targets != "classes" and not self.shifted(name)[1]:
                raise ConfigError(
                    f"evaluation.shifts={name}: these images are of no class, and what is told of that is of classes; "
                    f"task.likelihood is {self.config.likelihood}: leave it out"
                )

    def streamed_rows(self, workers: int, cpus_per_worker: float, split: str = "train") -> StreamedRows:
        share = Share.of(workers, cpus_per_worker)
        return StreamedRows(getattr(self.data, split), share, self.augmentation if split == "train" else None)

    def training_rows(self, seed: int) -> Any:
        rows = self.data.train
        return rows if self.augmentation is None else AugmentedImages(rows, self.augmentation, seed)

    def example(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch's shape and type, all zero."""
        target = self._outcome.target.to(device)
        return torch.zeros(rows, *self.data.shape, device=device), target.expand(rows, *target.shape[1:]).clone()

    def validation_fingerprint(self) -> str:
        rows, classes = self.data.validation, json.dumps(self.data.classes)
        digest = hashlib.sha256(f"{self.config.data.kind} {self.data.shape} {classes} {len(rows)}".encode())
        digest.update(self.data.splits["sha256"]["validation"].encode())
        digest.update(rows.labels.numpy().tobytes())
        return digest.hexdigest()

    def preprocessing(self) -> dict[str, Any]:
        """How a picture becomes the network's input: what :mod:`proxscore.vision.inputs` needs to do the same."""
        data, (channels, height, width) = self.config.data, self.data.shape
        normalise = self.normalisation
        return {
            "channels": channels,
            "height": height,
            "width": width,
            "mean": list(normalise.mean),
            "std": list(normalise.std),
            "interpolation": getattr(data, "interpolation", None) or "bilinear",
            "crop": getattr(data, "crop", None) or 1.0,
            "peak": self._peak,
        }

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
        """What to record of the data: kind, number and names of classes, shape (C, H, W), and how they were split."""
        described: dict[str, Any] = {
            "kind": self.config.data.kind,
            "classes": self.classes,
            "class_names": list(self.data.classes),
            "shape": list(self.data.shape),
            "preprocessing": self.preprocessing(),
            "splits": self.data.splits,
        }
        if self.data.targets == "classes":
            labels = self.data.train.labels
            described["rows_per_class"] = torch.bincount(labels, minlength=self.classes).tolist()
        if self._outcome.class_weights is not None:
            described["class_weights"] = self._outcome.class_weights.tolist()
        if isinstance(self.likelihood, HeteroscedasticGaussian):
            described["target_mean"] = self.likelihood.location.tolist()
            described["target_sd"] = self.likelihood.scale.tolist()
        return described
