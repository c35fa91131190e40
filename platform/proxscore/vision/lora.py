"""Low-rank adapters: a large pretrained network stays as it is, and small matrices beside some of its layers are trained.

    y = W x + b + (alpha / rank) B A x,      A: rank x inputs,   B: outputs x rank, zero at the start

Adapters are the package ``peft``'s. The posterior is over A, B and the classifier, in any family; every other parameter is
frozen. Hu et al., LoRA: low-rank adaptation of large language models, arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import nn

from proxscore.config import ConfigError, Section
from proxscore.config.extras import need
from proxscore.vision.frozen import keep_statistics

#: What the layers of attention are called in timm's Vision Transformers.
ATTENTION = ("attn.qkv", "attn.proj")


class LoRAConfig(Section):
    """Low-rank adapters beside layers of a network; needs the extra ``lora``."""

    rank: int = Field(8, ge=1, le=4096)  # of the adapters
    alpha: float = Field(16, gt=0)  # the adapters' part counts alpha / rank times
    targets: list[str] = Field([*ATTENTION])  # ends of the names of the layers that get an adapter
    dropout: float = Field(0, ge=0, lt=1)  # of an adapter's input, in training
    # What is saved. Null: the network with its adapters, and the posterior over them. Otherwise the plain network without
    # adapters: 0, its mean; n, n draws as a set of samples, each of them as large as the network's adapted layers.
    merged_draws: int | None = Field(None, ge=0, le=1000)


def with_adapters(model: nn.Module, config: LoRAConfig, head: Sequence[str]) -> nn.Module:
    """The network with adapters, which alone are trained, beside the classifier.

    Args:
        head: names of the classifier's layers.

    Raises:
        ConfigError: ``peft`` is missing, a target fits no layer that can have an adapter, or the network has no classifier.
    """
    peft = _peft()
    names = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for target in config.targets:
        if not any(_ends(name, target) for name in names):
            raise ConfigError(
                f"task.model.lora.targets: no linear layer or convolution is called {target!r}; the network has, for example, "
                + ", ".join(_kinds_of(names)[:6])
            )
    if not head:
        raise ConfigError("task.model.lora: timm names no classifier of this network, which has to be trained")
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=[name for name in names if any(_ends(name, target) for target in config.targets)],
        lora_dropout=config.dropout,
    )
    try:
        model = peft.inject_adapter_in_model(settings, model)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"task.model.lora: {' '.join(str(error).split())[:300]}") from error
    for layer in head:
        model.get_submodule(layer).requires_grad_(True)
    keep_statistics(model)
    return model


def adapters(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters, by name."""
    from peft.tuners.lora import LoraLayer  # an extra

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


@contextmanager
def all_used(model: nn.Module) -> Iterator[None]:
    """Within the context, a forward pass must go through every adapter.

    Raises:
        ConfigError: a layer's weights are read without calling the layer, so that its adapter would do nothing.
    """
    found, used = adapters(model), set()
    handles = [layer.register_forward_hook(lambda *_, name=name: used.add(name)) for name, layer in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if unused := [name for name in found if name not in used]:
        raise ConfigError(
            f"task.model.lora.targets: the network never calls {unused[0]} ({len(unused)} such layers), whose adapter would do "
            "nothing: choose other layers"
        )


def _peft() -> Any:
    need("lora", "task.model.lora")
    import peft

    return peft


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _kinds_of(names: Sequence[str]) -> list[str]:
    """The last two parts of layers' names, each once, without numbers."""
    ends = (".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in names)
    return list(dict.fromkeys(end for end in ends if end))


@torch.no_grad()
def merged_weight(layer: Any) -> torch.Tensor:
    """W + (alpha / rank) B A of a layer, shaped as W; the weights are read as they are, those of a draw included."""
    (adapter,) = layer.active_adapters
    weight: torch.Tensor = layer.get_base_layer().weight
    return weight + layer.get_delta_weight(adapter).to(weight)
