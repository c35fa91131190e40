"""Flat views of local shards and of their state, and the flat pieces that one pass of the mean field's arithmetic covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.elementwise import Number
from proxscore.inference.kernels import LARGE
from proxscore.inference.layout import filled
from proxscore.inference.members import Member

# Numbers in a piece that is not compiled; some ten temporaries of that size live at once. On the CPU large enough that
# the calls cost less than the arithmetic, small enough for the cache, and below the 32,768 from which on torch would start
# threads for each call, which wait for one another where others use the cores; elsewhere a kernel's worth of work.
SIZE = {"cpu": 24_576}
SIZE_ACCELERATOR = 1 << 22


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
    displacement: Tensor | None = None  # weights - mean, where the mean is not held
    scale: float | None = None  # c, where the step takes the gradient of its only draw itself
    version: int | None = None  # of the weights when that draw was left in them, as torch counts what is written

    @property
    def steps(self) -> float:
        """How many steps are in ``square``."""
        return 0.0 if self.squares is None else self.squares.item()

    @property
    def kind(self) -> tuple[bool, float, torch.device, torch.dtype]:
        """What shards must have in common to be one piece: a prior mean or none, steps in ``square``, and their tensors' kind."""
        return self.prior_mean is not None, self.steps, self.weights.device, self.weights.dtype


def views(
    member: Member, state: Mapping[str, Any], keeps_mean: bool, sums: bool = True, total: Tensor | None = None
) -> ShardViews:
    """The views of a parameter and its state; where no mean is kept, the weights are the mean.

    Args:
        sums: whether the step needs the draws' mean gradient beside the last one.
        total: memory for it, where it is of the weights' kind; else it is new memory.
    """
    weights, precision, score = map(noise.local, (member.parameter, state["precision"], state["score"]))
    curvature, prior_mean, square = (
        noise.local(state[name]) if name in state else None for name in ("curvature", "prior_mean", "square")
    )
    mean = noise.local(state["mean"]) if keeps_mean else weights
    if not sums:
        total = weights[:0]
    elif total is None or (total.device, total.dtype, len(total)) != (weights.device, weights.dtype, len(weights)):
        total = torch.empty_like(weights)  # there is none, or the module was moved or cast meanwhile
    squares = state.get("step")
    return ShardViews(member, weights, mean, precision, score, curvature, prior_mean, square, squares, total)


@dataclass
class Flat:
    """A piece of a large shard, or several small shards joined.

    Args:
        columns: the tensors that were asked for, by name; none where the shards have none.
        prior: the prior's precision.
        squares: steps in ``square``.
    """

    columns: dict[str, Tensor | None]
    prior: Number
    squares: float

    def __getitem__(self, name: str) -> Tensor:
        column = self.columns[name]
        assert column is not None
        return column


def flats(
    shards: Sequence[ShardViews], names: Sequence[str], changed: Sequence[str], prior_weight: float
) -> Iterator[Flat]:
    """Cut large shards, and join small ones, to pieces of about equal size.

    What is done to the columns ``changed`` of a piece is in the shards when the next piece is asked for.

    Args:
        names: which views are the columns of a piece.
        prior_weight: factor on the prior's precision.
    """
    if not shards:
        return
    size = SIZE.get(shards[0].weights.device.type, SIZE_ACCELERATOR)
    small: dict[tuple[bool, float, torch.device, torch.dtype], list[ShardViews]] = {}
    for shard in shards:
        if len(shard.weights) < min(size, LARGE):
            small.setdefault(shard.kind, []).append(shard)
        else:
            yield from _cut(shard, names, size, prior_weight)
    for group in small.values():
        start = held = 0
        for end, shard in enumerate(group, 1):
            held += len(shard.weights)
            if held >= size or end == len(group):
                yield from _joined(group[start:end], names, changed, prior_weight)
                start, held = end, 0


def _cut(shard: ShardViews, names: Sequence[str], size: int, prior_weight: float) -> Iterator[Flat]:
    prior, squares = shard.member.prior.precision * prior_weight, shard.steps
    columns = {name: getattr(shard, name) for name in names}
    for low in range(0, len(shard.weights), size):
        piece = {name: None if column is None else column[low : low + size] for name, column in columns.items()}
        yield Flat(piece, prior, squares)


def _joined(
    group: Sequence[ShardViews], names: Sequence[str], changed: Sequence[str], prior_weight: float
) -> Iterator[Flat]:
    if len(group) == 1:
        yield from _cut(group[0], names, len(group[0].weights) or 1, prior_weight)
        return
    sizes = [len(shard.weights) for shard in group]
    columns: dict[str, Tensor | None] = {}
    for name in names:
        views = [getattr(shard, name) for shard in group]
        columns[name] = None if views[0] is None else torch.cat(views)
    priors = [shard.member.prior.precision * prior_weight for shard in group]
    prior = priors[0] if len(set(priors)) == 1 else filled(priors, sizes, group[0].weights)
    yield Flat(columns, prior, group[0].steps)
    for name in changed:
        column = columns[name]
        if column is not None:
            torch._foreach_copy_([getattr(shard, name) for shard in group], column.split(sizes))
