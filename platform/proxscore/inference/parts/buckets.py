"""Flat views of local shards and of their state, in buckets that one pass of the mean field's arithmetic covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.bucket import Bucket, split
from proxscore.inference.members import Member

# Elements that one pass of in-place operations covers; three temporaries of that size live at once. On the CPU large
# enough that the calls cost less than the arithmetic, small enough for the cache; elsewhere a kernel's worth of work.
SIZE = {"cpu": 1 << 17}
SIZE_ACCELERATOR = 1 << 22

_COLUMNS = ("weights", "mean", "precision", "score", "total", "statistic", "square", "prior_mean", "displacement")


@dataclass
class ShardViews:
    """Flat local views of a parameter and its state, from the start of a draw loop to the step after it.

    Making them for every pass over the parameters would cost more than the arithmetic on small tensors.
    """

    member: Member
    weights: Tensor
    mean: Tensor
    precision: Tensor
    score: Tensor
    curvature: Tensor | None
    prior_mean: Tensor | None
    square: Tensor | None
    squares: Tensor | None  # how many steps ``square`` is a mean of: a number
    total: Tensor  # mean gradient over the draws of this step so far
    gradient: Tensor | None = None
    displacement: Tensor | None = None


def views(member: Member, state: Mapping[str, Any], keeps_mean: bool) -> ShardViews:
    """The views of a parameter and its state; where no mean is kept, the weights are the mean."""
    weights, precision, score = map(noise.local, (member.parameter, state["precision"], state["score"]))
    curvature, prior_mean, square = (
        noise.local(state[name]) if name in state else None for name in ("curvature", "prior_mean", "square")
    )
    mean, total = noise.local(state["mean"]) if keeps_mean else weights, torch.empty_like(weights)
    squares = state.get("step")
    return ShardViews(member, weights, mean, precision, score, curvature, prior_mean, square, squares, total)


def buckets(shards: Sequence[ShardViews], statistic: str, prior_weight: float) -> Iterator[Bucket]:
    """Cut shards into buckets of about equal size.

    Args:
        statistic: which of the views is a bucket's statistic: ``gradient``, or ``curvature`` where draws were averaged.
        prior_weight: factor on the prior's precision.
    """
    if not shards:
        return
    names = [statistic if name == "statistic" else name for name in _COLUMNS]
    rows = []
    for shard in shards:
        squares = 0.0 if shard.squares is None else shard.squares.item()
        tensors = tuple(getattr(shard, name) for name in names)
        rows.append((tensors, shard.member.prior.precision * prior_weight, squares))
    yield from split(rows, SIZE.get(shards[0].weights.device.type, SIZE_ACCELERATOR))
