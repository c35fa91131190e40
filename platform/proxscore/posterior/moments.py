"""Samples, standard deviations and covariances of a posterior, by the names of its numbers.

What is asked of a posterior is ``posterior.mean`` (a dictionary), ``posterior.sd()``, ``posterior.covariance()`` and
``posterior.sample(n)``; this module has the arithmetic. Of every family they are those of its state, in closed form (of
distributions given by code: their own, where they have them). Where a set of posteriors is mixed, they are those of the mixture:

    Cov = 1/M sum_m (Cov_m + (m_m - m)(m_m - m)^T),    m = 1/M sum_m m_m
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from proxscore.config import ConfigError
from proxscore.inference import FullCovariance

if TYPE_CHECKING:
    from proxscore.posterior.joint import Joint
    from proxscore.posterior.posterior import Posterior

#: Numbers whose covariance is written out: a matrix of 3.2 GB in double precision.
LARGEST = 20_000


def check_whole(tensors: Iterable[Tensor]) -> None:
    """Refuse shards: every rank would have a piece of the answer."""
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        raise ConfigError("moments and samples are of a whole posterior: call posterior.gather() on every rank first")


def sample(posterior: Posterior, count: int, seed: int) -> dict[str, Tensor]:
    """(count, *shape) by name. A set of samples that holds fewer is gone through again."""
    if count < 1:
        raise ConfigError(f"n is {count}; it must be at least 1")
    check_whole(posterior.mean.values())
    indices = posterior.indices(count)
    found = {name: value.new_empty((count, *value.shape)) for name, value in posterior.mean.items()}
    for row, index in enumerate(indices if len(indices) == count else range(count)):
        for name, value in posterior.draw(index, seed).items():
            found[name][row] = value.detach()
    return found


def variances(posterior: Posterior) -> dict[str, Tensor]:
    """Of each number of mean-field and joint families, shaped as the parameters; zero for point estimates."""
    check_whole(posterior.mean.values())
    found = {name: torch.zeros_like(value) for name, value in posterior.mean.items()}
    found |= {name: precision.reciprocal() for name, precision in posterior.precision.items()}
    for joint in posterior.joint:
        pieces = joint.layout.family.variance(joint.state).detach().split(joint.layout.sizes)
        found |= {
            name: piece.view_as(found[name]).to(found[name]) for name, piece in zip(joint.names, pieces, strict=True)
        }
    return found


def places(posterior: Posterior, names: Sequence[str] | None) -> dict[str, slice]:
    """Where each of these parameters (none: all, in the order of ``mean``) stands in the rows of a covariance.

    Raises:
        ConfigError: an unknown name, or too many numbers.
    """
    check_whole(posterior.mean.values())
    found: dict[str, slice] = {}
    start = 0
    for name in posterior.mean if names is None else names:
        if name not in posterior.mean:
            raise ConfigError(f"names: {name!r} is none of {', '.join(list(posterior.mean)[:3])}, ...")
        found[name] = slice(start, start + posterior.mean[name].numel())
        start = found[name].stop
    if start > LARGEST:
        raise ConfigError(
            f"a covariance of {start:,} numbers is too large to write out (at most {LARGEST:,}): give names, or use sd()"
        )
    return found


def covariance(posterior: Posterior, at: Mapping[str, slice]) -> Tensor:
    """The covariance of mean-field and joint families over the parameters at these places."""
    like = next(iter(posterior.mean.values()))
    size = max((place.stop for place in at.values()), default=0)
    result = like.new_zeros(size, size)
    for name, precision in posterior.precision.items():
        if name in at:
            result.diagonal()[at[name]] = precision.reciprocal().reshape(-1).to(result)
    for joint in posterior.joint:
        chosen = [name for name in joint.names if name in at]
        if not chosen:
            continue
        block, own = _block(joint, chosen)
        block = block.to(result)
        for one in chosen:
            for two in chosen:
                result[at[one], at[two]] = block[own[one][:, None], own[two]]
    return result


def _block(joint: Joint, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The covariance of some parameters of a block, and where each stands in it: of the others' numbers nothing is written
    out, where the family's state has a row for each number."""
    family, state = joint.layout.family, joint.state
    parts = dict(zip(joint.names, torch.arange(joint.layout.size).split(joint.layout.sizes), strict=True))
    if family.shardable or isinstance(family, FullCovariance):
        rows = torch.cat([parts[name] for name in names])
        state = {key: value[rows.to(value.device)] if value.ndim else value for key, value in state.items()}
        sizes = [len(parts[name]) for name in names]
        parts = dict(zip(names, torch.arange(len(rows)).split(sizes), strict=True))
    return family.covariance(state).detach(), parts
