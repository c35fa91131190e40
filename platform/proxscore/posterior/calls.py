"""How a network is called: with a tensor, with a tuple of arguments, or with named ones; and what of its answer counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from proxscore.config import ConfigError

#: Rows of a data set in batches (inputs, targets), or a function that gives a new pass over them. Inputs are a tensor, a
#: tuple or list of arguments, or a dictionary of named ones. Batches to predict may have no targets: they are then a tensor,
#: or a list or tuple of one element.
Batches = Callable[[], Iterable[Any]] | Iterable[Any]


def batches_of(batches: Batches) -> Iterator[tuple[Any, Tensor | None]]:
    """One pass over pairs of inputs and targets; without targets, the second is none.

    Raises:
        ConfigError: an element is neither a pair nor inputs alone.
    """
    for batch in batches() if callable(batches) else batches:
        if isinstance(batch, Tensor):
            yield batch, None
        elif isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
            yield batch[0], batch[1] if len(batch) == 2 else None
        else:
            raise ConfigError(
                f"a batch must be a pair (inputs, targets), or inputs alone, and this one is a {type(batch).__name__}: give "
                "the loader a collate_fn that returns pairs"
            )


def pairs_of(batches: Batches) -> Iterator[tuple[Any, Tensor]]:
    """One pass over pairs of inputs and targets.

    Raises:
        ConfigError: an element is no pair.
    """
    for inputs, targets in batches_of(batches):
        if targets is None:
            raise ConfigError("a batch must be a pair (inputs, targets) here, and this one has no targets")
        yield inputs, targets


def rows_of(inputs: Any) -> int:
    """How many rows a batch of inputs has."""
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if not leaves:
        raise ConfigError("a batch of inputs has no tensor: give tensors whose first dimension counts the rows")
    return len(leaves[0])


def to_device(inputs: Any, device: torch.device) -> Any:
    """The tensors of an input on a device."""
    return tree_map(lambda value: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value, inputs)


def call(module: nn.Module, inputs: Any) -> Any:
    """The network's answer to a tensor, a tuple or list of arguments, or a dictionary of named ones."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    if isinstance(inputs, (tuple, list)):
        return module(*inputs)
    return module(inputs)


def outputs_of(module: nn.Module, inputs: Any) -> Tensor:
    """The tensor that the likelihood takes: what the network returns, or its ``logits``.

    Raises:
        ConfigError: it returns neither.
    """
    found = call(module, inputs)
    if isinstance(found, Mapping):
        found = found.get("logits", found)
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"the network returns a {type(found).__name__}; wrap it in a module that returns the tensor of its outputs (logits)"
        )
    return found
