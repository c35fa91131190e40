"""What a network is to tell of an image: one class of many, any of several labels, or numbers; and how that is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.inference import Bernoulli, Categorical, HeteroscedasticGaussian, MultiLabel
from proxscore.tasks import ClassificationEvaluator, Evaluator, MultiLabelEvaluator, RegressionEvaluator
from proxscore.vision.images import ImageData
from proxscore.vision.task import VisionConfig

#: Likelihood -> what the data must hold for it.
NEEDS = {"categorical": "classes", "bernoulli": "classes", "multi_label": "labels", "gaussian": "values"}
_HELD = {
    "classes": "a class for each image",
    "labels": "a list of labels for each image",
    "values": "numbers for each image",
}


@dataclass(frozen=True)
class Outcome:
    """The head of a network and what it is judged by.

    Attributes:
        likelihood: of the targets, given the network's outputs.
        outputs: numbers that the network returns for an image.
        evaluator: of predictions.
        target: a batch of one target, which has their shape and type.
        class_weights: what a row of each class counts, where classes are weighted.
    """

    likelihood: Any
    outputs: int
    evaluator: Evaluator
    target: Tensor
    class_weights: Tensor | None = None


def outcome(config: VisionConfig, data: ImageData, trained: Mapping[str, Any]) -> Outcome:
    """What a configuration asks a network to tell of these images.

    Args:
        trained: what the description of a trained network says of the data that it was trained on, if there is one.

    Raises:
        ConfigError: the likelihood does not go with what the data hold, or a setting with the likelihood.
    """
    kind = config.likelihood
    if NEEDS[kind] != data.targets:
        right = " or ".join(f"task.likelihood={name}" for name, needed in NEEDS.items() if needed == data.targets)
        raise ConfigError(
            f"task.likelihood={kind} needs {_HELD[NEEDS[kind]]}; the data hold {_HELD[data.targets]}: use {right}"
        )
    classes = len(data.classes)
    if kind == "gaussian":
        location, scale = _units(data, trained)
        if not (scale > 0).all():
            raise ConfigError(
                "task.likelihood=gaussian: the training targets are all the same: there is nothing to learn"
            )
        likelihood = HeteroscedasticGaussian(location, scale)
        return Outcome(likelihood, 2 * len(location), RegressionEvaluator(), torch.zeros(1, len(location)))
    if kind == "multi_label":
        return Outcome(MultiLabel(), classes, MultiLabelEvaluator(classes), torch.zeros(1, classes))
    label = torch.zeros(1, dtype=torch.long)
    if kind == "bernoulli":
        if classes != 2:
            raise ConfigError(
                f"task.likelihood=bernoulli is one of two classes; the data have {classes}: use categorical"
            )
        return Outcome(Bernoulli(), 1, ClassificationEvaluator(classes), label)
    weights = _class_weights(config, data)
    return Outcome(
        Categorical(config.label_smoothing, weights), classes, ClassificationEvaluator(classes), label, weights
    )


def _units(data: ImageData, trained: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the training targets."""
    if "target_mean" in trained:
        location, scale = (torch.tensor(trained[key], dtype=torch.float32) for key in ("target_mean", "target_sd"))
        if len(location) != (count := data.train.labels.shape[1]):
            raise ConfigError(
                f"the network was trained to tell {len(location)} numbers of an image; these data have {count}"
            )
        return location, scale
    values = data.train.labels.double()
    return values.mean(0).float(), values.std(0).float()


def _class_weights(config: VisionConfig, data: ImageData) -> Tensor | None:
    """What a row of each class counts, such that the training rows count one on average; none where all count the same.

    ``balanced``: proportional to 1 / (rows of the class).
    """
    if config.class_weights == "none":
        return None
    counts = torch.bincount(data.train.labels, minlength=len(data.classes)).double()
    if config.class_weights == "balanced":
        if absent := [name for name, count in zip(data.classes, counts.tolist(), strict=True) if not count]:
            raise ConfigError(f"task.class_weights=balanced: the training split has no image of class {absent[0]!r}")
        weights = 1 / counts
    else:
        if len(config.class_weights) != len(counts):
            raise ConfigError(
                f"task.class_weights has {len(config.class_weights)} numbers; the data have {len(counts)} classes: give one for "
                f"each, in the order {', '.join(data.classes[:10])}"
            )
        weights = torch.tensor(config.class_weights, dtype=torch.float64)
    return (weights * counts.sum() / (weights * counts).sum()).float()
