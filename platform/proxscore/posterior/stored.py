"""A posterior from what :meth:`proxscore.posterior.Posterior.pack` gave: a header of plain JSON values, and tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxscore.config import FAMILIES, ConfigError
from proxscore.inference.layout import Layout
from proxscore.posterior.checks import check_tensors
from proxscore.posterior.posterior import DESCRIPTION_FILE, WEIGHTS_FILE, Joint, Posterior


def unpack(folder: Path, header: Any, tensors: Mapping[str, Tensor]) -> Posterior:
    """The posterior of what :meth:`Posterior.pack` gave.

    Raises:
        ConfigError: it does not fit together; names the file in the folder.
    """
    if not isinstance(header, dict) or header.get("format") != 1:
        raise ConfigError(f"{folder / DESCRIPTION_FILE}: not a posterior of format 1")
    own = ("format", "family", "joint", "kind", "tensors")
    description = {key: value for key, value in header.items() if key not in own}
    kinds = {Posterior.kind: Posterior} | Posterior.kinds
    kind = header.get("kind", Posterior.kind)
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{folder / DESCRIPTION_FILE}: kind is {kind!r}; it must be one of {', '.join(kinds)}")
    groups: dict[str, dict[str, Tensor]] = {"mean": {}, "joint": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = tensor
    joint = blocks(folder, header.get("joint", []), groups)
    del groups["joint"]
    found = kinds[kind].from_groups(folder, description, groups, joint)
    if header.get("tensors", len(tensors)) != len(tensors):
        raise ConfigError(
            f"{folder / WEIGHTS_FILE}: {len(tensors)} tensors, and {DESCRIPTION_FILE} counts {header['tensors']}"
        )
    check_tensors(found, str(folder / WEIGHTS_FILE))
    return found


class _UnknownFamilyError(ConfigError):
    """A family that another package has."""


def blocks(folder: Path, described: Any, parts: Mapping[str, dict[str, Tensor]]) -> list[Joint]:
    """The blocks of a saved posterior.

    Raises:
        ConfigError: what the description says of them does not fit the tensors; names the block.
    """
    left, joint, number = dict(parts["joint"]), [], 0
    try:
        if not isinstance(described, list):
            raise TypeError(f"blocks are a list, not {type(described).__name__}")
        for number, settings in enumerate(described):
            arguments = {name: value for name, value in settings.items() if name not in ("kind", "parameters")}
            numbers = sum(tensor.numel() for name, tensor in left.items() if name.startswith(f"{number}."))
            for name, value in arguments.items():  # before anything of that size is made
                if isinstance(value, int) and value > max(numbers, 1):
                    raise ValueError(f"{name} is {value}, and the block has {numbers} numbers")
            if len(set(settings["parameters"])) < len(settings["parameters"]):
                raise ValueError("a parameter is listed twice")
            if isinstance(kind := settings.get("kind"), str) and kind not in FAMILIES.kinds():
                raise _UnknownFamilyError(
                    f"{folder}: the posterior's family {kind!r} is not known here: install the package that has it"
                )
            family = FAMILIES.component(settings["kind"])(**arguments)
            first = parts["mean"][settings["parameters"][0]]
            family.check(
                settings["parameters"][0], first.shape, sum(parts["mean"][n].numel() for n in settings["parameters"])
            )
            layout = Layout(family, [(name, parts["mean"][name], 0) for name in settings["parameters"]])
            zeros = torch.zeros(layout.size)
            expected = family.initial(zeros, zeros + 1, layout.shape, lambda _, zeros=zeros: zeros)
            state = {name: left.pop(f"{number}.{name}") for name in expected}
            for name, tensor in state.items():
                if tensor.shape != expected[name].shape:
                    raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
            joint.append(Joint(layout, state))
        if left:
            raise ValueError(f"the tensor joint.{next(iter(left))} belongs to no block")
    except _UnknownFamilyError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}: damaged posterior: block {number}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    return joint
