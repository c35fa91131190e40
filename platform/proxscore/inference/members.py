"""The trained parameters of an optimizer: what the prior says of each, and how precise its posterior is at the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from proxscore.inference import noise
from proxscore.inference.initial import initial_scales
from proxscore.inference.priors import Assignment, Prior


@dataclass
class Member:
    """A trained parameter, with what the prior says of it.

    Args:
        start: index of its local shard's first number in the flattened whole tensor.
        initial_precision: precision that the posterior starts with, where it is sampled; the prior's is included.
        prior_mean: mean of the prior, whole or sharded; none: zero, or the prior is flat.
    """

    name: str
    parameter: Tensor
    prior: Assignment
    start: int
    initial_precision: float
    prior_mean: Tensor | None

    def prior_mean_shard(self) -> Tensor:
        """The prior mean as a tensor that is sharded as the parameter is."""
        placed = torch.zeros_like(self.parameter.detach())
        shard = noise.local(placed)
        shard.copy_(self.prior_mean_numbers(self.start, len(shard)))
        return placed

    def prior_mean_numbers(self, first: int, count: int) -> Tensor:
        """Numbers of the flattened prior mean; gathered for them, alone, where it is not sharded as the parameter is."""
        mean, like = self.prior_mean, self.parameter
        assert mean is not None
        if isinstance(mean, DTensor):
            alike = isinstance(like, DTensor) and (mean.device_mesh, mean.placements) == (
                like.device_mesh,
                like.placements,
            )
            if alike and (first, count) == (self.start, len(noise.local(mean))):
                return noise.local(mean)
            mean = mean.full_tensor()
        return mean.reshape(-1)[first : first + count]


def still_trained(members: list[Member]) -> list[Member]:
    """The members that nobody froze since the optimizer was built."""
    return [member for member in members if member.parameter.requires_grad]


def named_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Parameter groups with their trained, named parameters only, each parameter once; groups keep their settings.

    Raises:
        ValueError: no parameter is trained, or they have no names.
    """
    items = list(params)
    if not items:
        raise ValueError("params is empty: pass model.named_parameters()")
    seen: set[int] = set()
    groups = []
    for group in items if isinstance(items[0], dict) else [{"params": items}]:
        trained = []
        for item in group["params"]:
            if not (isinstance(item, tuple) and len(item) == 2):
                raise ValueError("parameters must be named: pass model.named_parameters(), not model.parameters()")
            if item[1].requires_grad and id(item[1]) not in seen:
                seen.add(id(item[1]))
                trained.append(item)
        if trained:
            groups.append({**group, "params": trained})
    if not groups:
        raise ValueError("params holds no parameter that requires a gradient")
    return groups


def assign_members(
    named: Sequence[tuple[str, Tensor]],
    groups: Sequence[Mapping[str, Any]],
    prior: Prior,
    initial_precision: Mapping[str, float],
    initial_noise: float,
    scale: float,
) -> list[list[Member]]:
    """The members of each parameter group.

    Args:
        named: all parameters with their names, in the order of the groups.
        groups: each with its ``params``, and ``initial_precision`` where it is given for the group.
        initial_precision: by name, divided by ``scale``, in place of the group's.
        initial_noise: relative to each tensor's weights, where no precision is given.
        scale: data size / temperature.

    Raises:
        ValueError: a name that no parameter has, or a parameter that cannot be sampled like this.
    """
    for name, parameter in named:
        _check_parameter(name, parameter)
    assignments = prior.assign(named)
    for setting, given in (("prior.mean", prior.mean), ("initial_precision", initial_precision)):
        unknown = set(given) - set(assignments)
        if unknown:
            raise ValueError(f"{setting} names {sorted(unknown)[0]!r}, which is no trained parameter")
    members, remaining = [], iter(named)
    for group in groups:
        own = [next(remaining) for _ in group["params"]]
        precisions = [initial_precision.get(name, group["initial_precision"]) for name, _ in own]
        members.append(
            [
                _member(name, parameter, assignments[name], prior.mean.get(name), precision, scale)
                for (name, parameter), precision in zip(own, precisions, strict=True)
            ]
        )
    undecided = {m.name: m for own in members for m in own if m.prior.sampled and m.initial_precision == 0}
    scales = initial_scales({name: member.parameter for name, member in undecided.items()})
    for name, member in undecided.items():
        member.initial_precision = max((initial_noise * scales[name]) ** -2, member.prior.precision)
    return members


def _member(
    name: str, parameter: Tensor, prior: Assignment, mean: Tensor | None, initial_precision: float | None, scale: float
) -> Member:
    """A member whose initial precision is zero where none is given; its prior's mean counts unless the prior is flat."""
    if prior.precision == 0:
        mean = None
    if mean is not None:
        if mean.shape != parameter.shape:
            raise ValueError(f"prior.mean of {name} has shape {tuple(mean.shape)}; it must be {tuple(parameter.shape)}")
        mean = mean.detach()
    precision = 0.0 if initial_precision is None else initial_precision * scale + prior.precision
    return Member(name, parameter, prior, noise.shard_offset(parameter, name), precision, mean)


def _check_parameter(name: str, parameter: Tensor) -> None:
    """Refuse a parameter that cannot hold draws: of low precision, or not contiguous."""
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"parameter {name} is {parameter.dtype}: keep parameters in float32 and use autocast or FSDP's "
            "MixedPrecisionPolicy for low-precision compute"
        )
    if not (parameter.to_local() if isinstance(parameter, DTensor) else parameter).is_contiguous():
        raise ValueError(
            f"parameter {name} is not contiguous (channels_last?): convert inputs instead of the module, or call "
            ".contiguous() on its parameters"
        )
