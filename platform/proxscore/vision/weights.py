"""Weights to start from: a state dict in a file, checked key by key against the network before anything is loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from proxscore.config import ConfigError

log = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Copy the tensors of ``path`` into ``model``, strictly by name and shape.

    The one exception is a classifier head of another number of classes (``pretrained_cfg["classifier"]`` names it): it
    keeps its initialisation, and a log line says so.

    Args:
        model: a timm model.
        path: ``.safetensors``, or a state dict written by ``torch.save`` (read with ``weights_only=True``).

    Returns:
        The keys that kept their initialisation; empty without such a head.

    Raises:
        ConfigError: the file cannot be read or holds no state dict; a key is missing, unexpected or of another shape.
    """
    state = _read(path.expanduser())
    own = model.state_dict()
    file = f"task.model.weights {path}"
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    if missing:
        extra = f"; it has {unexpected[0]!r}, which the model does not" if unexpected else ""
        raise ConfigError(f"{file} lacks {missing[0]!r} ({_more(missing)}){extra}")
    if unexpected:
        raise ConfigError(f"{file} has {unexpected[0]!r}, unknown to the model ({_more(unexpected)})")
    kept = tuple(key for key in own if _other_classes(model, key, state[key], own[key]))
    for key in own:
        if key not in kept and state[key].shape != own[key].shape:
            found, right = tuple(state[key].shape), tuple(own[key].shape)
            raise ConfigError(f"{file}: {key!r} has shape {found}; the model's has {right}")
    model.load_state_dict({**state, **{key: own[key] for key in kept}})
    if kept:
        count = state[kept[0]].shape[0]
        log.info("%s: head of %d classes not loaded; left at its initialisation: %s", path, count, ", ".join(kept))
    return kept


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"task.model.weights {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # of a file that is something else: whatever the unpickler stumbles over, IndexError, KeyError, ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"task.model.weights {path}: neither safetensors nor a state dict: {reason}") from error
    if not isinstance(state, dict):
        raise ConfigError(f"task.model.weights {path}: holds a {type(state).__name__}; expected a dict of tensors")
    other = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        kind = type(state[other[0]]).__name__
        raise ConfigError(f"task.model.weights {path}: {other[0]!r} is a {kind}; save the state dict of tensors alone")
    return dict(state)


def _other_classes(model: nn.Module, key: str, loaded: Tensor, own: Tensor) -> bool:
    """Whether ``key`` belongs to the classifier and differs in the number of classes (its first axis) alone."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (names,) if isinstance(names, str) else tuple(names)
    if not any(key.startswith(f"{head}.") for head in heads) or loaded.ndim != own.ndim or own.ndim == 0:
        return False
    return loaded.shape[0] != own.shape[0] and loaded.shape[1:] == own.shape[1:]


def _more(keys: list[str]) -> str:
    return f"{len(keys)} such key{'s' if len(keys) > 1 else ''}"
