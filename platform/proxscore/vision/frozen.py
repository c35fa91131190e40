"""Parts of a network that training leaves as they are."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from proxscore.config import ConfigError
from proxscore.inference.names import classifier_layers
from proxscore.posterior.drawn import KEEPS

#: Everything but the classifier.
BODY = "body"


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters that a glob pattern, or the name of a layer, matches; ``body`` is all but the classifier.

    A layer of batch normalisation without a trained parameter also keeps its statistics.

    Raises:
        ConfigError: a pattern matches no parameter, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        found = _matching(model, list(named), pattern)
        if not found:
            raise ConfigError(f"task.model.frozen: {pattern!r} matches no parameter, for example {next(iter(named))!r}")
        for name in found:
            named[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError(f"task.model.frozen={list(patterns)} leaves nothing to train")
    if patterns:
        keep_statistics(model)


def keep_statistics(model: nn.Module) -> None:
    """Let layers of batch normalisation without a trained parameter normalise by the statistics that they have."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            own = list(layer.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                setattr(layer, KEEPS, True)
                layer.register_forward_pre_hook(_in_evaluation)


def _matching(model: nn.Module, names: list[str], pattern: str) -> list[str]:
    if pattern == BODY:
        head = classifier_layers(model)
        if not head:
            raise ConfigError(
                "task.model.frozen=body: timm names no classifier of this network: give patterns of names"
            )
        return [name for name in names if name.rpartition(".")[0] not in head]
    return [name for name in names if name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)]


def _in_evaluation(layer: nn.Module, _: Any) -> None:
    """Normalise by the statistics that are there, whatever mode the network is in."""
    layer.eval()
