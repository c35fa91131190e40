"""Dropout before the classifier as a layer, in networks of timm that drop by a function.

timm's ResNets, EfficientNets and MobileNets call ``torch.nn.functional.dropout`` before their classifier (``drop_rate``). Monte
Carlo dropout gives its masks to layers, so the same dropout is made one: a child ``drop`` of the classifier, with no weights,
through which the classifier's input passes.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from proxscore.inference.names import classifier_layers
from proxscore.posterior.dropout import dropout_layers

_DROP = "drop"


def make_layer(model: nn.Module) -> None:
    """Turn a network's own dropout before its classifier into a layer, if it has one and no dropout layer."""
    rate = getattr(model, "drop_rate", 0)
    head = classifier_layers(model)
    if not isinstance(rate, int | float) or not rate or not head or dropout_layers(model):
        return
    setattr(model, "drop_rate", 0.0)  # noqa: B010 (a module's attributes have no such type)
    for name in head:
        classifier = model.get_submodule(name)
        classifier.add_module(_DROP, nn.Dropout(float(rate)))
        classifier.register_forward_pre_hook(_through)


def _through(classifier: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    features, *rest = inputs
    return (classifier.get_submodule(_DROP)(features), *rest)
