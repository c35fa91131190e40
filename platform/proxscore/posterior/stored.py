"""Posteriors in folders: a header of plain JSON values, and tensors by name, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from proxscore.config import FAMILIES, ConfigError
from proxscore.inference.layout import Layout
from proxscore.inference.names import named_parameters
from proxscore.posterior.checks import check_tensors
from proxscore.posterior.posterior import DESCRIPTION_FILE, WEIGHTS_FILE, Joint, Posterior
from proxscore.posterior.shards import Place, agreed, write_tensors
from proxscore.posterior.stored_tensors import StoredTensors
from proxscore.posterior.tensors import whole
from proxscore.storage import write


def save(posterior: Posterior, folder: Path) -> Path:
    """See :meth:`Posterior.save`."""
    header, tensors = posterior.pack()
    folder.mkdir(parents=True, exist_ok=True)
    sharded = posterior.sharded
    write_tensors(folder, tensors)
    with agreed() if sharded else nullcontext():
        if not sharded or dist.get_rank() == 0:
            write(folder / DESCRIPTION_FILE, json.dumps(header, indent=2) + "\n")
    return folder


def pack(posterior: Posterior) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """See :meth:`Posterior.pack`."""
    for joint in posterior.joint:
        if joint.layout.family.kind not in FAMILIES.kinds():
            raise ConfigError(
                f"family {joint.layout.family.kind} holds code and cannot be saved; those that can: "
                f"{', '.join(FAMILIES.kinds())}"
            )
    tensors = {f"{group}.{name}": t for group, ts in posterior.groups().items() for name, t in ts.items()}
    for number, joint in enumerate(posterior.joint):
        state = whole(joint.gathered()) if posterior.sharded else joint.gathered()
        tensors |= {f"joint.{number}.{name}": t for name, t in state.items()}
    described = [
        {"kind": joint.layout.family.kind, "parameters": joint.names, **joint.layout.family.settings()}
        for joint in posterior.joint
    ]
    header: dict[str, Any] = {"format": 1, "family": posterior.family} | ({"joint": described} if described else {})
    if type(posterior) is not Posterior:
        header["kind"] = posterior.kind
    plain = {name: state for name, state in posterior.extra_state.items() if not isinstance(state, Tensor)}
    for name, state in plain.items():
        if not is_json(state):
            raise ConfigError(
                f"layer {name or type(posterior).__name__} has extra state of type {type(state).__name__}, which cannot be "
                "saved: only tensors and plain values (numbers, texts, lists, dictionaries) can"
            )
    header |= {"tensors": len(tensors)} | ({"extra_state": plain} if plain else {})
    return header | posterior.description, tensors


def load(folder: Path, like: nn.Module | DeviceMesh | None = None) -> Posterior:
    """See :meth:`Posterior.load`."""
    places = _Places(like)
    with agreed() if places.sharded else nullcontext():
        header = read_header(folder)
        stored = StoredTensors(folder)
        tensors: dict[str, Tensor] = {}
        for name, shape in stored.shapes.items():
            place = places.of(name, shape)
            tensors[name] = (
                stored.read(name) if place is None else place.placed(stored.read(name, place.rows(shape)), shape)
            )
        return unpack(folder, header, tensors)


def read_header(folder: Path) -> Any:
    """What ``posterior.json`` holds: the description, and what tensors there are.

    Raises:
        ConfigError: it is missing or damaged.
    """
    if not (folder / DESCRIPTION_FILE).is_file():
        raise ConfigError(f"{folder}: no posterior there ({DESCRIPTION_FILE} is missing)")
    try:
        header: Any = json.loads((folder / DESCRIPTION_FILE).read_text())
    except (ValueError, OSError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8
        reason = " ".join(str(error).split())
        raise ConfigError(f"{folder}: damaged posterior: {DESCRIPTION_FILE}: {reason}") from None
    return header


class _Places:
    """Where the tensors of a posterior go.

    Args:
        like: a module, a mesh, or nothing: into this process.
    """

    def __init__(self, like: nn.Module | DeviceMesh | None) -> None:
        self._mesh = like if isinstance(like, DeviceMesh) else None
        parameters = named_parameters(like) if isinstance(like, nn.Module) else {}
        self._like = {name: p for name, p in parameters.items() if isinstance(p, DTensor)}
        self.sharded = self._mesh is not None or bool(self._like)

    def of(self, key: str, shape: tuple[int, ...]) -> Place | None:
        """Where a tensor goes, by its name in a file; none: it stays whole.

        Raises:
            ConfigError: a parameter of the module has another shape.
        """
        while key.startswith("member-"):
            key = key.partition(".")[2]
        group, _, name = key.partition(".")
        if group in ("buffer", "extra", "joint"):
            return None
        if self._mesh is not None:
            return Place.on(self._mesh) if shape else None
        like = self._like.get(name)
        if like is None:
            return None
        if tuple(like.shape) != shape:
            raise ConfigError(
                f"posterior of another architecture: {name} is {shape} there, {tuple(like.shape)} in the model"
            )
        return Place.of(like)


def is_json(value: Any) -> bool:
    """Whether a value is plain."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


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
            means = {name: parts["mean"][name] for name in settings["parameters"]}
            layout = Layout(family, [(name, _shape_of(mean), 0) for name, mean in means.items()])
            zeros = torch.zeros(layout.size)
            expected = family.initial(zeros, zeros + 1, layout.shape, lambda _, zeros=zeros: zeros)
            state = {name: left.pop(f"{number}.{name}").to(first.device) for name in expected}
            for name, tensor in state.items():
                if tensor.shape != expected[name].shape:
                    raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
            joint.append(Joint(layout, state).placed_as(means))
        if left:
            raise ValueError(f"the tensor joint.{next(iter(left))} belongs to no block")
    except _UnknownFamilyError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}: damaged posterior: block {number}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    return joint


def _shape_of(tensor: Tensor) -> Tensor:
    """A tensor of this shape and type without numbers, and without shards."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
