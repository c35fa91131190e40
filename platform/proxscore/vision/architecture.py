"""Networks that a saved posterior describes: built from timm's registry and the shapes alone.

A description may come from elsewhere. Its name and keywords could make timm ask servers and read files (``hf-hub:owner/model``,
``local-dir:folder``, ``pretrained``, ``pretrained_cfg`` with a URL, ``checkpoint_path``), all for weights that the posterior
brings itself. So a name must be one of the registry, a keyword one that a class of the network's own module takes, and what
says where weights come from is left out. Whoever wants more says so on the command line.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from proxscore.config import ConfigError
from proxscore.vision.models import LOADING

_NORMS = frozenset({"bn_eps", "bn_momentum"})  # which timm hands to the layers of a whole family of networks


def described(model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The section ``task.model`` of a description, without anything that would be fetched or read.

    Args:
        where: the description lies, for messages.

    Raises:
        ConfigError: a network that is not in timm's registry, or a keyword that none of its classes takes.
    """
    section = {key: value for key, value in model.items() if key not in ("weights", "pretrained")}
    name, kwargs = section.get("name"), section.get("kwargs")
    if not isinstance(name, str):  # the default's, or refused with the rest of the configuration
        return section
    if ":" in name or not timm.is_model(name):
        raise ConfigError(
            f"{where}: task.model.name is {name!r:.200}, no network of timm's registry; nothing is fetched or read to build it: "
            "override it, for example task.model.name=resnet18"
        )
    if not isinstance(kwargs, dict):
        return section
    known = _keywords(name)
    kept = {key: value for key, value in kwargs.items() if key not in LOADING}
    for key in kept:
        if key not in known:
            raise ConfigError(
                f"{where}: task.model.kwargs has {key!r:.200}, which shapes no network of {name}'s module: override it, for "
                "example task.model.kwargs={}"
            )
    return section | {"kwargs": kept}


def _keywords(name: str) -> set[str]:
    """Parameters of the function that makes a network, of the classes of its module, and fields of their settings."""
    function = timm.model_entrypoint(name)
    found = {*_NORMS, *inspect.signature(function).parameters}
    for value in vars(sys.modules[function.__module__]).values():
        if isinstance(value, type) and (issubclass(value, nn.Module) or dataclasses.is_dataclass(value)):
            found |= set(inspect.signature(value).parameters)
    return found - LOADING
