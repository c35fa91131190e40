"""The mean-field Gaussian over any number of parameters, in closed form and in place on their local shards.

Nothing is flattened or gathered: every pass is elementwise over *buckets* of local shards, so that sharding needs no
communication, and the state is the optimizer's, with the parameters' own placements. The arithmetic is that of
:mod:`proxscore.inference.foreach_step`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from proxscore.inference import foreach_step, noise
from proxscore.inference.bucket import Bucket
from proxscore.inference.convergence.shard_probes import ShardProbes
from proxscore.inference.members import Member, still_trained
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts.buckets import ShardViews, buckets, views
from proxscore.inference.parts.part import Part, States
from proxscore.inference.step import Draw, ProximalStep


class Shards(Part):
    """Parameters with a mean-field Gaussian. State of each: ``mean``, ``precision``, ``score`` (running mean of the
    gradient), ``square`` and ``step`` (running mean of its square, and how many are in it) with the adaptive metric,
    ``curvature`` if a step has several draws, and ``prior_mean`` if there is one.

    Args:
        state: the optimizer's; gets the initial values.
        draws: how many draws, or pairs, a step has.
        adaptive: whether the mean has the adaptive metric.
    """

    keeps_mean = True

    def __init__(self, members: list[Member], state: States, draws: int, adaptive: bool) -> None:
        self.all_members, self.members, self._draws = members, members, draws
        self._shards = list[ShardViews]()
        self._prior_weight = 1.0  # of this step
        self._streams = noise.Streams()
        for member in members:
            parameter, held = member.parameter.detach(), state[member.parameter]
            if self.keeps_mean:
                held["mean"] = parameter.clone()
            held["precision"] = torch.full_like(parameter, member.initial_precision)
            held["score"] = torch.zeros_like(parameter)
            if adaptive:
                held["square"], held["step"] = torch.zeros_like(parameter), torch.zeros(())
            if draws > 1:
                held["curvature"] = torch.zeros_like(parameter)
            if member.prior_mean is not None:
                held["prior_mean"] = member.prior_mean_shard()
        self.probes: ShardProbes = ShardProbes(members)

    def begin(self, state: States) -> None:
        self.members = still_trained(self.all_members)
        self._shards = [views(member, state[member.parameter], self.keeps_mean) for member in self.members]
        if self._shards:
            torch._foreach_copy_([s.mean for s in self._shards], [s.weights for s in self._shards])

    def sample(self, draw: Draw) -> None:
        self._prior_weight = draw.prior_weight
        if draw.sign < 0:
            self._reflect(draw)
            return
        for shard in self._shards:
            shard.member.parameter.grad = shard.gradient = None  # the last draw's would live beside this one's
            weights, mean, precision = shard.weights, shard.mean, shard.precision
            seed, start, total = (
                noise.key(draw.seed, shard.member.name),
                shard.member.start,
                shard.member.parameter.numel(),
            )
            for piece, values in self._streams.pieces(weights, seed, start, total):
                if len(values) == len(weights):
                    foreach_step.sample_(weights, mean, precision, values)
                else:
                    foreach_step.sample_(weights[piece], mean[piece], precision[piece], values)

    def _reflect(self, draw: Draw) -> None:
        for bucket in self._buckets():
            foreach_step.reflect_(bucket)

    def take(self, draw: Draw, gradients: list[Tensor]) -> None:
        """Add the gradient to the step's; after a draw or pair, turn it into the curvature statistic.

        After the first draw of a pair the gradient is left negated, so that the second backward pass accumulates
        g_minus - g_plus without a buffer. The total holds g_plus then, and (g_minus - g_plus) / 2 makes it the mean.
        """
        for shard, gradient in zip(self._shards, gradients, strict=True):
            shard.gradient = gradient
        second = draw.paired and draw.last
        for bucket in self._buckets():
            if draw.first and not second:
                torch._foreach_copy_(bucket.total, bucket.statistic)
                if draw.draws > 1:
                    torch._foreach_mul_(bucket.total, 1 / draw.draws)
            else:
                torch._foreach_add_(bucket.total, bucket.statistic, alpha=(0.5 if second else 1.0) / draw.draws)
            if draw.last:
                foreach_step.curvature_(bucket, draw.scale / 2 if draw.paired else draw.scale, draw.paired)
            else:
                torch._foreach_neg_(bucket.statistic)
        if draw.last and self._draws > 1:
            for shard in self._shards:
                assert shard.curvature is not None
                assert shard.gradient is not None
                if draw.first:  # what a skipped step left may not be finite: it is not multiplied by zero
                    shard.curvature.zero_()
                shard.curvature.add_(shard.gradient, alpha=1 / self._draws)

    def taken(self) -> list[Tensor]:
        return [s.total for s in self._shards] + [s.curvature for s in self._shards if s.curvature is not None]

    def restore(self) -> None:
        if self._shards:
            torch._foreach_copy_([s.weights for s in self._shards], [s.mean for s in self._shards])

    def step(self, step: ProximalStep, monitor: Monitor | None) -> None:
        statistic = "curvature" if self._draws > 1 else "gradient"
        before = self.probes.before(step, self._shards, statistic)
        for bucket in self._buckets(statistic):
            ratio = foreach_step.update_(bucket, step)
            if monitor is not None:
                monitor.add(bucket.precision, ratio)
        if step.metric is not None:
            for shard in self._shards:
                assert shard.squares is not None
                shard.squares += 1
        if before is not None:
            self.probes.after(step, self._shards, before)
        self._shards = []

    def forget(self) -> None:
        self._shards = []

    def _buckets(self, statistic: str = "gradient") -> Iterator[Bucket]:
        yield from buckets(self._shards, statistic, self._prior_weight)
