"""Networks by timm name, fitted to the data: number of classes, channels, image size, and weights to start from."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import psutil
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from proxscore.config import ConfigError
from proxscore.inference.names import classifier_layers
from proxscore.vision import small_cnn  # noqa: F401  (registers the name with timm)
from proxscore.vision.frozen import freeze
from proxscore.vision.head_dropout import make_layer
from proxscore.vision.lora import all_used, with_adapters
from proxscore.vision.task import ModelConfig
from proxscore.vision.weights import load_weights

#: Keywords of timm that say where weights come from, and shape nothing.
LOADING = frozenset(
    name
    for function in (timm.create_model, timm.models.build_model_with_cfg)
    for name in inspect.signature(function).parameters
    if name not in ("model_name", "model_cls", "kwargs")
)


def build_model(config: ModelConfig, *, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Create ``config.name`` for images of ``shape`` and ``classes`` classes, with the weights that it starts from.

    ``num_classes`` and ``in_chans`` come from the data; ``config.kwargs`` may hold them too, and must then agree.
    ``img_size`` is passed to the models that take one (Vision Transformers and their kin), unless it is in the kwargs.
    Two zero images are sent through once, in evaluation mode, so that a network that cannot take them is refused here. On the
    meta device no weights are loaded.

    Args:
        config: name, keyword overrides for ``timm.create_model``, weights, what is trained, memory format of the images.
        classes: number of logits per image (one of a Bernoulli likelihood); the network returns (B, classes).
        shape: (channels, height, width) of an image.

    Raises:
        ConfigError: unknown name (the nearest ones are named), keywords that the network refuses, more parameters than there
            is memory for, a network that does not return (2, classes) for two images, weights that do not fit.
    """
    _check_name(config.name)
    kwargs = dict(config.kwargs)
    for key, value in (("num_classes", classes), ("in_chans", shape[0])):
        if kwargs.setdefault(key, value) != value:
            raise ConfigError(f"task.model.kwargs.{key} is {kwargs[key]}; the data have {value}: leave it out")
    _check_size(config.name, kwargs, shape[1:])
    on_meta = torch.get_default_device().type == "meta"
    loads = config.pretrained and not on_meta
    model = create(config.name, kwargs | ({"pretrained": True} if loads else {}), shape[1:])
    _check_forward(model, config.name, classes, shape)
    if config.weights is not None and not on_meta:
        load_weights(model, config.weights, lambda more: create(config.name, kwargs | more, shape[1:]))
    if config.zero_head:
        _zero(model, classifier_layers(model))
    make_layer(model)
    if config.lora is not None:
        model = with_adapters(model, config.lora, classifier_layers(model))
        with all_used(model):
            _check_forward(model, config.name, classes, shape)
    freeze(model, config.frozen)
    if config.channels_last:
        model.register_forward_pre_hook(_channels_last)
    return model


def _channels_last(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Images in the memory format that convolutions then pass on; the weights stay as they are, which sharding needs."""
    images, *rest = inputs
    return (images.to(memory_format=torch.channels_last), *rest)


def _check_name(name: str) -> None:
    if ":" in name or timm.is_model(name):  # "hf-hub:owner/model" and "local-dir:folder" name no entry of the registry
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else "timm.list_models() lists the names"
    raise ConfigError(f"task.model.name is {name!r}, which timm does not know; {hint}")


def _check_size(name: str, kwargs: dict[str, Any], size: tuple[int, int]) -> None:
    """Refuse a network whose parameters do not fit into memory, from a copy on the meta device, where it can be built there."""
    if ":" in name or torch.get_default_device().type == "meta":
        return
    try:
        with torch.device("meta"), torch.random.fork_rng([]):
            parameters = sum(parameter.numel() for parameter in create(name, kwargs, size).parameters())
    except ConfigError:  # some networks need numbers to be built; what else is wrong is found when it is built
        return
    free = psutil.virtual_memory().available
    if (needed := 4 * parameters) > free:
        shown = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        raise ConfigError(
            f"task.model {name} with {shown}: {parameters:,} parameters are {needed / 2**30:.3g} GiB; {free / 2**30:.3g} GiB of "
            "memory are free"
        )


def create(name: str, kwargs: dict[str, Any], size: tuple[int, int] | None = None) -> nn.Module:
    """``timm.create_model``, with the images' size if the network takes one.

    Raises:
        ConfigError: whatever timm or the network refuses, in one line.
    """
    # timm has no list of the models that take img_size. Those that do not refuse it before they build anything.
    sized = {**({"img_size": size[0] if size[0] == size[1] else size} if size else {}), **kwargs}
    try:
        try:
            return timm.create_model(name, **sized)
        except TypeError as error:
            if "'img_size'" not in str(error):
                raise
        return timm.create_model(name, **kwargs)
    except Exception as error:  # each network checks its keywords in its own way: assert, KeyError, RuntimeError, ...
        if kwargs.get("pretrained") and _is_away(error):
            raise ConfigError(
                f"task.model.pretrained: the weights of {name} are not in the hub's cache and cannot be fetched "
                f"({_one_line(error):.120}): connect, or name a file of theirs by task.model.weights"
            ) from error
        if kwargs.get("pretrained") and "No pretrained weights exist" in str(error):
            raise ConfigError(
                f"task.model.pretrained: timm has no pretrained weights of {name}: leave it out"
            ) from error
        shown = ", ".join(f"{key}={value}" for key, value in kwargs.items())
        raise ConfigError(f"task.model {name} with {shown}: {_one_line(error)}") from error


def _check_forward(model: nn.Module, name: str, classes: int, shape: tuple[int, int, int]) -> None:
    example = next(model.parameters())
    images = torch.zeros(2, *shape, device=example.device, dtype=example.dtype)
    pixels = "x".join(str(n) for n in shape)
    training = model.training
    model.eval()  # batch statistics stay as they are, and no random numbers are drawn
    try:
        with torch.no_grad():
            logits = model(images)
    except Exception as error:  # whatever a layer says about an input that it cannot take
        raise ConfigError(f"task.model {name} cannot take {pixels} images: {_one_line(error)}") from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"task.model {name} returns {found} for 2 images of {pixels}; expected (2, {classes}) logits")


def _is_away(error: BaseException | None) -> bool:
    """Whether a server or a file that weights come from is what is missing."""
    while error is not None:
        if isinstance(error, (OSError, LocalEntryNotFoundError)):
            return True
        error = error.__cause__
    return False


def _zero(model: nn.Module, head: tuple[str, ...]) -> None:
    if not head:
        raise ConfigError("task.model.zero_head: timm names no classifier of this network")
    with torch.no_grad():
        for layer in head:
            for parameter in model.get_submodule(layer).parameters():
                parameter.zero_()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
