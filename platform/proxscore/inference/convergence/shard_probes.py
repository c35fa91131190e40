"""What is watched of parameters with a mean field on their shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.convergence.averages import Current, Probed, averaged
from proxscore.inference.convergence.runaway import CHECK_EVERY, plausible, refuse_runaway
from proxscore.inference.convergence.watched import (
    KEY,
    packed,
    rows_and_columns,
    saved_sums,
    unpacked,
    watched_indices,
    watched_per_row,
)
from proxscore.inference.convergence.windows import Seen, Windows
from proxscore.inference.elementwise import curvature
from proxscore.inference.layout import filled
from proxscore.inference.members import Member
from proxscore.inference.parts.part import States
from proxscore.inference.step import ProximalStep
from proxscore.inference.undecided import Fetched

if TYPE_CHECKING:
    from proxscore.inference.parts.flats import ShardViews


class ShardProbes:
    """The watched numbers of all parameters of :class:`proxscore.inference.parts.shards.Shards`, in one :class:`Windows`."""

    def __init__(self, members: list[Member]) -> None:
        self._members = members
        self._unchecked: tuple[Fetched, Callable[[], None]] | None = None
        self._where = {m.name: watched_indices(m.parameter.detach(), m.start, m.name) for m in members}
        sizes = [len(self._where[member.name]) for member in members]
        self._slices = {
            m.name: slice(end - n, end) for m, n, end in zip(members, sizes, accumulate(sizes), strict=True)
        }
        like = noise.local(members[0].parameter)
        numbers = sum(rows_and_columns(m.parameter)[0] * watched_per_row(m.parameter) for m in members)
        self.windows = Windows(sum(sizes), 0, like, numbers)

    def before(self, step: ProximalStep, shards: list[ShardViews], statistic: str) -> tuple[Seen, Tensor | None] | None:
        """What is seen before a step, and which rows it belongs to; none in a step that is not watched."""
        if not shards or self.windows.sums.is_meta or not self.windows.watched(step.number):
            return None
        k, precision, score, mean = (self._watched(shards, name) for name in (statistic, "precision", "score", "mean"))
        prior, prior_mean = self._prior(shards)
        prior = prior * step.prior_weight
        scale = shards[0].scale
        if scale is None:
            total = self._watched(shards, "total")
        else:  # the step takes the gradient itself
            total, k = k, curvature(k, self._watched(shards, "weights") - mean, precision, prior, scale)
        score = score.lerp(total, 1 - step.momentum)
        ratio = step.penalty.precision_ratio(k, step.weights[0])
        limit = math.inf if step.max_log_precision_step is None else step.max_log_precision_step
        whitened = (step.score_scale * score - prior * (mean - prior_mean)) * precision.rsqrt()
        clipped = (ratio.log().abs() >= limit).to(k)
        return Seen(k, whitened, mean, precision.log(), clipped, torch.zeros_like(k)), self._rows(shards)

    def after(self, step: ProximalStep, shards: list[ShardViews], before: tuple[Seen, Tensor | None]) -> None:
        """Add what was seen before a step, and whether the step was cut, once it is taken.

        Raises:
            RunawayError: a tensor's numbers left every plausible range.
        """
        seen, rows = before
        mean = self._watched(shards, "mean")
        moved = (mean - seen.mean).abs()
        if step.metric is None:  # the trust region is in standard deviations
            moved *= (0.5 * seen.log_precision).exp()
        seen.clipped_mean = (moved >= 0.999 * step.max_mean_step).to(moved) * float(step.max_mean_step > 0)
        self.windows.add(seen, rows, step.go)
        if seen.mean.device.type == "cpu" or self.windows.first_of(step.number, CHECK_EVERY):
            log = self._watched(shards, "precision").log()
            members = [shard.member for shard in shards]
            sizes = [len(self._where[member.name]) for member in members]
            initial = filled([member.initial_precision for member in members], sizes, log)
            prior = filled([member.prior.precision for member in members], sizes, log)
            names = [member.name for member in members]
            fine = Fetched(plausible(log, prior, initial, mean)[0].all())
            self._unchecked = fine, partial(refuse_runaway, names, sizes, log, prior, initial, mean)
            if step.go is None:
                self.settle()

    def settle(self) -> None:
        """Look at the last check, where that has not happened yet, as the device was ahead of the host.

        Raises:
            RunawayError: a tensor's numbers left every plausible range.
        """
        unchecked, self._unchecked = self._unchecked, None
        if unchecked is not None and not unchecked[0].values():
            unchecked[1]()

    def _watched(self, shards: list[ShardViews], name: str) -> Tensor:
        return torch.cat([getattr(shard, name).index_select(0, self._where[shard.member.name]) for shard in shards])

    def _prior(self, shards: list[ShardViews]) -> tuple[Tensor, Tensor]:
        """The prior's precisions and means."""
        sizes = [len(self._where[shard.member.name]) for shard in shards]
        precision = filled([shard.member.prior.precision for shard in shards], sizes, shards[0].weights)
        means = torch.zeros_like(precision)
        for shard, mean in zip(shards, means.split(sizes), strict=True):
            if shard.prior_mean is not None:
                mean.copy_(shard.prior_mean.index_select(0, self._where[shard.member.name]))
        return precision, means

    def _rows(self, shards: list[ShardViews]) -> Tensor | None:
        if len(shards) == len(self._members):
            return None
        pieces = [self._slices[shard.member.name] for shard in shards]
        return torch.cat([torch.arange(p.start, p.stop, device=self.windows.sums.device) for p in pieces])

    def probed(self, state: States, momentum: float) -> Iterator[Probed]:
        """The averages of each tensor."""
        for member in self._members:
            held, where = state[member.parameter], self._where[member.name]
            mean = noise.local(held.get("mean", member.parameter))[where]
            log = noise.local(held["precision"])[where].log()
            prior_mean = noise.local(held["prior_mean"])[where] if "prior_mean" in held else torch.zeros_like(mean)
            now = Current(mean, log, torch.full_like(mean, member.prior.precision), prior_mean)
            sums = self.windows.sums[:, self._slices[member.name]]
            numbers = noise.local(member.parameter).numel()
            yield averaged(member.name, numbers, member.start, sums, now, self.windows.spacing, momentum)

    def save(self, state: States) -> None:
        """Write the sums into the optimizer's state."""
        for member in self._members:
            held = saved_sums(member.parameter)
            noise.local(held).copy_(packed(self.windows.sums[:, self._slices[member.name]]))
            state[member.parameter][KEY] = held

    def load(self, state: States, age: int) -> None:
        """Read the sums from the optimizer's state after ``age`` steps; where there are none, windows begin anew."""
        self._unchecked = None  # it was of another state
        self.windows.load_vector(None)
        for member in self._members:
            held, piece = state[member.parameter].get(KEY), self._slices[member.name]
            size = 2 * (piece.stop - piece.start) * self.windows.sums.shape[-1]
            if held is not None and noise.local(held).numel() == size:
                self.windows.sums[:, piece] = unpacked(noise.local(held)).to(self.windows.sums)
        self.windows.resume(age)
