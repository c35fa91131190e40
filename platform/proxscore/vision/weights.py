"""Weights to start from: a state dict in a file or a folder, fitted to the network as timm fits its own.

A checkpoint of another image size, of other input channels or with a classifier of other classes is adapted by timm (position
embeddings are interpolated, the first convolution's channels are summed or repeated) through its own loading of pretrained
weights; a new classifier keeps its initialisation. Everything else must fit: what does not is counted and refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference.names import classifier_layers
from proxscore.posterior.shards import INDEX_FILE
from proxscore.posterior.stored_tensors import StoredTensors

log = logging.getLogger(__name__)

#: Files of a folder that may hold weights, the first one counts: a posterior's mean, a network's state dict.
FILES = ("posterior.safetensors", "model.safetensors", "state_dict.pth", "state_dict.pt")
#: Groups of a posterior's tensors that make up its mean network.
_OF_THE_MEAN = ("mean.", "buffer.")

Rebuild = Callable[[dict[str, Any]], nn.Module]


def load_weights(model: nn.Module, path: Path, rebuild: Rebuild) -> tuple[str, ...]:
    """Copy the tensors of ``path`` into ``model``.

    Args:
        model: a timm model.
        path: ``.safetensors``, or a state dict written by ``torch.save`` (read with ``weights_only=True``), or a folder with one
            (a saved posterior gives its mean network).
        rebuild: makes the same network from keywords for ``timm.create_model`` that say where its weights come from.

    Returns:
        The keys that kept their initialisation: those of a classifier of other classes.

    Raises:
        ConfigError: the file cannot be read or holds no state dict, or its tensors are those of another network; counts what
            fits and what does not.
    """
    state, own = read_state(path), model.state_dict()
    file = f"task.model.weights {path}"
    head = [key for key in own if key.rpartition(".")[0] in classifier_layers(model)]
    kept = tuple(key for key in head if key in state and _other_classes(state[key], own[key]))
    fitted = state | {key: own[key] for key in kept}
    if not _fits(fitted, own):
        fitted = _adapted(model, fitted, own, rebuild, file)
    model.load_state_dict(fitted)
    if kept:
        count = state[kept[0]].shape[0]
        log.info("%s: head of %d classes not loaded; left at its initialisation: %s", path, count, ", ".join(kept))
    return kept


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file or folder by name; see :func:`load_weights`."""
    path = path.expanduser()
    if path.is_dir():
        if (path / INDEX_FILE).is_file():
            stored = StoredTensors(path)
            held = {name: stored.read(name) for name in stored.shapes if name.startswith(_OF_THE_MEAN)}
            return _mean_network(held, path)
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            raise ConfigError(f"task.model.weights {path}: the folder holds none of {', '.join(FILES)}")
        return _mean_network(_read(file), path) if file.name == FILES[0] else _read(file)
    return _read(path)


def _mean_network(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not any(name.startswith("mean.") for name in tensors):
        raise ConfigError(
            f"task.model.weights {path}: a posterior that is a set of samples, as an ensemble leaves, has no mean network: name "
            "one that has"
        )
    return {
        name.removeprefix(group): tensor
        for group in _OF_THE_MEAN
        for name, tensor in tensors.items()
        if name.startswith(group)
    }


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
    for wrapped in ("state_dict", "model"):  # as training scripts save it, beside an optimizer and an epoch
        if isinstance(inner := state.get(wrapped), dict) and all(isinstance(value, Tensor) for value in inner.values()):
            return dict(inner)
    other = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        kind = type(state[other[0]]).__name__
        raise ConfigError(f"task.model.weights {path}: {other[0]!r} is a {kind}; save the state dict of tensors alone")
    return dict(state)


def _other_classes(loaded: Tensor, own: Tensor) -> bool:
    """Whether a classifier's tensor differs in the number of classes (its first axis) alone."""
    return 0 < loaded.ndim == own.ndim and loaded.shape[0] != own.shape[0] and loaded.shape[1:] == own.shape[1:]


def _fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return state.keys() == own.keys() and all(state[key].shape == own[key].shape for key in own)


def _adapted(
    model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor], rebuild: Rebuild, file: str
) -> dict[str, Tensor]:
    """The state as timm's loading of pretrained weights leaves it in this network.

    Raises:
        ConfigError: it does not fit; counts the tensors.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    channels = _channels(cfg, state, own, file)
    overlay: dict[str, Any] = {
        "state_dict": state,
        "num_classes": getattr(model, "num_classes", None),
        "label_offset": 0,
    }
    if channels is not None:
        overlay["input_size"] = (channels, *(cfg.get("input_size") or (3, 224, 224))[1:])
    try:
        with torch.random.fork_rng([]):
            return dict(rebuild({"pretrained": True, "pretrained_cfg_overlay": overlay}).state_dict())
    except (ConfigError, RuntimeError) as error:
        raise ConfigError(f"{file}: {_misfits(state, own)}") from error


def _channels(cfg: Mapping[str, Any], state: Mapping[str, Tensor], own: Mapping[str, Tensor], file: str) -> int | None:
    """Input channels of the file's first convolution; none where there is none, or where it cannot be told."""
    names = cfg.get("first_conv") or ()
    for name in (names,) if isinstance(names, str) else names:
        loaded, wanted = state.get(f"{name}.weight"), own.get(f"{name}.weight")
        if loaded is None or wanted is None or loaded.ndim != 4 or wanted.ndim != 4:
            continue
        given, asked = loaded.shape[1], wanted.shape[1]
        if given != asked:
            try:
                adapt_input_conv(asked, loaded, base_chans=given)
            except NotImplementedError as error:
                raise ConfigError(
                    f"{file}: {name}.weight takes {given} channels, the images have {asked}, and timm cannot adapt it: use "
                    f"images of {given} channels"
                ) from error
        return int(given)
    return None


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What of a file fits a network and what does not, in words."""
    shared = [key for key in own if key in state]
    shapes = [key for key in shared if state[key].shape != own[key].shape]
    missing, unknown = [key for key in own if key not in state], [key for key in state if key not in own]
    found = [f"{len(shared) - len(shapes)} of the network's {len(own)} tensors fit"]
    if missing:
        found.append(f"{len(missing)} are missing, such as {missing[0]!r}")
    if shapes:
        key = shapes[0]
        found.append(
            f"{len(shapes)} have another shape, such as {key!r}: {tuple(state[key].shape)}, and {tuple(own[key].shape)} here"
        )
    if unknown:
        found.append(f"{len(unknown)} of the file are unknown to the network, such as {unknown[0]!r}")
    return "; ".join(found) + ": these are the weights of another network (task.model.name, task.model.kwargs)"
