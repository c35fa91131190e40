"""A posterior over the weights of a network: seeded draws put into a module, and storage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from proxscore.config import ConfigError
from proxscore.inference import MeanField, ProximalScore, noise
from proxscore.inference.families import FAMILIES, State
from proxscore.inference.layout import Layout
from proxscore.inference.priors import canonical

WEIGHTS_FILE = "posterior.safetensors"
DESCRIPTION_FILE = "posterior.json"


@dataclass
class Joint:
    """Parameters that one family describes together.

    Attributes:
        layout: their names, and how a vector of the family is cut into them.
        state: of the family.
    """

    layout: Layout
    state: State

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.layout.members]

    def draw_(self, targets: Mapping[str, Tensor], index: int, seed: int) -> None:
        """Write draw ``index`` into the tensors of these names."""
        with torch.no_grad():
            vector = self.layout.draw(self.state, 1.0, noise.key(seed, "posterior", index))
            self.layout.put(vector, (targets[name] for name in self.names))


@dataclass
class Posterior:
    """Mean-field Gaussian over named weights, other families for some of them; with neither, a point estimate.

    Tensors may be sharded (DTensors of a model under FSDP2): draws are then made shard by shard, without communication,
    and are the same draws as those of the gathered posterior.

    Args:
        mean: posterior mean by parameter name; of point-estimated parameters, their value.
        precision: 1 / variance by parameter name, for the parameters with a mean-field posterior.
        joint: parameters with other families.
        buffers: the module's persistent buffers (running statistics) by name.
        description: what it takes to use it (architecture, data, prior, schedules, versions); plain JSON values.

    Other kinds of posteriors are subclasses with a ``kind`` of their own, under which they are saved and loaded.
    """

    kind: ClassVar[str] = "gaussian"
    single: ClassVar[str] = "mean"  # what the prediction without draws is called
    kinds: ClassVar[dict[str, type[Posterior]]] = {}

    mean: dict[str, Tensor]
    precision: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)
    joint: list[Joint] = field(default_factory=list)

    def __init_subclass__(cls) -> None:
        Posterior.kinds[cls.kind] = cls

    @classmethod
    def of(
        cls,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        description: Mapping[str, Any] | None = None,
    ) -> Posterior:
        """The current posterior of a module in training; refers to the training state, copies nothing.

        With an optimizer that is no :class:`ProximalScore` (or none), it is the point estimate in the weights, and what
        the optimizer's ``posterior_from(point)`` makes of it, if it has that method.
        """
        sampled = list(optimizer.sampled()) if isinstance(optimizer, ProximalScore) else []
        blocks = optimizer.blocks() if isinstance(optimizer, ProximalScore) else ()
        buffers = {canonical(name): value for name, value in module.state_dict().items()}
        mean = {canonical(name): parameter.detach() for name, parameter in module.named_parameters()}
        for name in mean:
            buffers.pop(name, None)
        tied = {canonical(n) for n, _ in module.named_parameters(remove_duplicate=False)} - set(mean)
        buffers = {name: value for name, value in buffers.items() if name not in tied}
        precision = {name: state["precision"] for name, _, state in sampled}
        found = cls(mean, precision, buffers, dict(description or {}), [Joint(b.layout, b.state) for b in blocks])
        makes = getattr(optimizer, "posterior_from", None)
        return found if makes is None else makes(found)

    @property
    def random(self) -> bool:
        """Whether anything is: draws of a point estimate are all the same."""
        return bool(self.precision or self.joint)

    @property
    def family(self) -> str:
        """The kinds of families, joined by ``+``: ``mean_field``, ``mean_field+low_rank``; ``point`` where there is none."""
        kinds = {"mean_field": bool(self.precision)} | {joint.layout.family.kind: True for joint in self.joint}
        return "+".join(kind for kind, present in kinds.items() if present) or "point"

    def indices(self, draws: int) -> list[int]:
        """The indices of so many draws; a set of samples has no more than those that it holds."""
        return list(range(draws)) if self.random else [0]

    def draw(self, index: int, seed: int = 0) -> dict[str, Tensor]:
        """Weights of one draw: the same for the same (seed, index), wherever and however sharded it is made.

        Point-estimated parameters are returned as they are.
        """
        weights = dict(self.mean)
        for name in self.precision:
            weights[name] = torch.empty_like(self.mean[name])
            self._sample_(name, weights[name], noise.local(self.mean[name]), index, seed)
        for joint in self.joint:
            weights |= {name: torch.empty_like(self.mean[name]) for name in joint.names}
        self._together_(weights, index, seed)
        return weights

    def _together_(self, targets: Mapping[str, Tensor], index: int, seed: int) -> None:
        """What of a draw parameters have in common; the independent part is in the targets already."""
        for joint in self.joint:
            joint.draw_(targets, index, seed)

    def _sample_(self, name: str, target: Tensor, mean: Tensor, index: int, seed: int) -> None:
        weights, precision = noise.local(target), noise.local(self.precision[name])
        stream = noise.NormalStream(weights.device, weights.dtype)
        key, start = noise.key(seed, "posterior", index, name), noise.shard_offset(target, name)
        for piece, values in stream.pieces(key, start, len(weights), target.numel()):
            MeanField().sample_(weights[piece], mean[piece], precision[piece].to(weights.device), values)

    @contextmanager
    def use(self, module: nn.Module, index: int | None = None, seed: int = 0) -> Iterator[nn.Module]:
        """Within the context, the module's weights are draw ``index`` (none: the mean); afterwards what they were.

        Buffers are left alone; see :meth:`load_into`.

        Raises:
            ConfigError: the module is of another architecture.
        """
        _reshard(module)
        parameters = {canonical(name): parameter for name, parameter in module.named_parameters()}
        self._check(parameters)
        before = {name: noise.local(parameter).clone() for name, parameter in parameters.items()}
        try:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    weights, mean = noise.local(parameter), noise.local(self.mean[name])
                    if mean.data_ptr() == weights.data_ptr():  # a posterior in training: its means are the weights
                        mean = before[name]
                    if index is not None and name in self.precision:
                        self._sample_(name, parameter, mean.to(weights.device), index, seed)
                    else:
                        weights.copy_(mean)
                if index is not None:
                    self._together_(parameters, index, seed)
            torch.clear_autocast_cache()
            yield module
        finally:
            _reshard(module)
            with torch.no_grad():
                for name, values in before.items():
                    noise.local(parameters[name]).copy_(values)
            torch.clear_autocast_cache()

    def load_into(self, module: nn.Module) -> nn.Module:
        """Put the mean weights and the buffers into a module of the same architecture.

        Raises:
            ConfigError: the architectures differ; names the first parameter or buffer that does not fit.
        """
        parameters = {canonical(name): parameter for name, parameter in module.named_parameters()}
        self._check(parameters)
        buffers = {canonical(name): buffer for name, buffer in module.named_buffers()}
        for name, value in self.buffers.items():
            if name not in buffers or buffers[name].shape != value.shape:
                raise ConfigError(f"posterior of another architecture: buffer {name} does not fit the model")
        with torch.no_grad():
            for name, value in self.mean.items():
                parameters[name].copy_(value)
            for name, value in self.buffers.items():
                buffers[name].copy_(value)
        return module

    def _check(self, parameters: Mapping[str, Tensor]) -> None:
        for name in (*self.mean, *parameters):
            ours, theirs = self.mean.get(name), parameters.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape:
                shapes = [("no such parameter" if t is None else str(tuple(t.shape))) for t in (ours, theirs)]
                raise ConfigError(
                    f"posterior of another architecture: {name} is {shapes[0]} there, {shapes[1]} in the model"
                )

    # ------------------------------------------------------------ storage

    def gather(self) -> Posterior:
        """An unsharded copy on the CPU. With sharded tensors every rank must call it; all but rank 0 get empty tensors."""
        states = [
            _whole({name: joint.layout.gather(value) for name, value in joint.state.items()}) for joint in self.joint
        ]
        mean = _whole(self.mean)
        joint = [
            Joint(Layout(old.layout.family, [(name, mean[name], 0) for name in old.names]), state)
            for old, state in zip(self.joint, states, strict=True)
        ]
        return replace(self, mean=mean, precision=_whole(self.precision), buffers=_whole(self.buffers), joint=joint)

    def save(self, folder: str | Path) -> Path:
        """Write ``posterior.safetensors`` and ``posterior.json`` (readable, no pickle) into a folder; returns it.

        Raises:
            ConfigError: a family that holds code instead of settings.
        """
        header, tensors = self.pack()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / DESCRIPTION_FILE).write_text(json.dumps(header, indent=2) + "\n")
        return folder

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors but those of joint families, by group (a word without a dot) and name."""
        return {"mean": self.mean, "precision": self.precision, "buffer": self.buffers}

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is saved: a header of plain JSON values, and tensors by ``group.name``."""
        for joint in self.joint:
            if joint.layout.family.kind not in FAMILIES:
                raise ConfigError(
                    f"family {joint.layout.family.kind} holds code and cannot be saved; those that can: {', '.join(FAMILIES)}"
                )
        tensors = {f"{group}.{name}": t for group, ts in self.groups().items() for name, t in ts.items()}
        for number, joint in enumerate(self.joint):
            tensors |= {f"joint.{number}.{name}": t for name, t in joint.state.items()}
        described = [
            {"kind": joint.layout.family.kind, "parameters": joint.names, **joint.layout.family.settings()}
            for joint in self.joint
        ]
        header: dict[str, Any] = {"format": 1, "family": self.family} | ({"joint": described} if described else {})
        if type(self) is not Posterior:
            header["kind"] = self.kind
        return header | self.description, {name: t.detach().cpu().contiguous() for name, t in tensors.items()}

    @classmethod
    def load(cls, folder: str | Path) -> Posterior:
        """Read what :meth:`save` wrote; needs neither Ray nor MLflow.

        Raises:
            ConfigError: a file is missing or damaged; names it.
        """
        folder = Path(folder)
        for name in (DESCRIPTION_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise ConfigError(f"{folder}: no posterior there ({name} is missing)")
        try:
            header = json.loads((folder / DESCRIPTION_FILE).read_text())
            tensors = load_file(folder / WEIGHTS_FILE)
        except (SafetensorError, ValueError, OSError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8
            raise ConfigError(f"{folder}: damaged posterior: {' '.join(str(error).split())}") from None
        return unpack(folder, header, tensors)

    @classmethod
    def from_groups(
        cls, folder: Path, description: dict[str, Any], groups: dict[str, dict[str, Tensor]], joint: list[Joint]
    ) -> Posterior:
        """The posterior of a saved header's description and tensors; see :meth:`groups`.

        Raises:
            ConfigError: tensors that no posterior of this kind has.
        """
        mean, precision, buffers = (groups.pop(name, {}) for name in ("mean", "precision", "buffer"))
        found = cls(mean, precision, buffers, description, joint)
        for group, named in groups.items():
            raise ConfigError(f"{folder / WEIGHTS_FILE}: not the tensors of a posterior ({group}.{next(iter(named))})")
        return found


def unpack(folder: Path, header: Any, tensors: Mapping[str, Tensor]) -> Posterior:
    """The posterior of what :meth:`Posterior.pack` gave.

    Raises:
        ConfigError: it does not fit together; names the file in the folder.
    """
    if not isinstance(header, dict) or header.get("format") != 1:
        raise ConfigError(f"{folder / DESCRIPTION_FILE}: not a posterior of format 1")
    description = {key: value for key, value in header.items() if key not in ("format", "family", "joint", "kind")}
    kinds = {Posterior.kind: Posterior} | Posterior.kinds
    kind = header.get("kind", Posterior.kind)
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{folder / DESCRIPTION_FILE}: kind is {kind!r}; it must be one of {', '.join(kinds)}")
    groups: dict[str, dict[str, Tensor]] = {"mean": {}, "joint": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = tensor
    joint = _joint(folder, header.get("joint", []), groups)
    del groups["joint"]
    return kinds[kind].from_groups(folder, description, groups, joint)


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unsharded copies on the CPU, of the first rank; empty tensors on the others, which must call it, too."""
    keep = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    result = {}
    for name, tensor in tensors.items():  # one at a time: no rank holds the model twice
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        result[name] = full.detach().to("cpu", copy=True) if keep else torch.empty(0)
    return result


def _joint(folder: Path, described: Any, parts: Mapping[str, dict[str, Tensor]]) -> list[Joint]:
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
            family = FAMILIES[settings["kind"]](**arguments)
            layout = Layout(family, [(name, parts["mean"][name], 0) for name in settings["parameters"]])
            zeros = torch.zeros(layout.size)
            expected = family.initial(zeros, zeros + 1, layout.shape, lambda _, zeros=zeros: zeros)  # type: ignore[misc]
            state = {name: left.pop(f"{number}.{name}") for name in expected}
            for name, tensor in state.items():
                if tensor.shape != expected[name].shape:
                    raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
            joint.append(Joint(layout, state))
        if left:
            raise ValueError(f"the tensor joint.{next(iter(left))} belongs to no block")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}: damaged posterior: block {number}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    return joint


def _reshard(module: nn.Module) -> None:
    """Free the gathered weights that FSDP2 keeps after a forward without backward: they would outlive the draw."""
    for layer in module.modules():
        if isinstance(layer, FSDPModule):
            layer.reshard()
