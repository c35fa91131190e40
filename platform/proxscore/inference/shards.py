"""The mean-field Gaussian over any number of parameters, in closed form and in place on their local shards.

Nothing is flattened or gathered: every pass is elementwise over *buckets* of local shards, so that sharding needs no
communication, and the state is the optimizer's, with the parameters' own placements. The arithmetic is that of
:mod:`proxscore.inference.families.mean_field`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.convergence import Probed
from proxscore.inference.families.mean_field import Bucket, MeanField, split
from proxscore.inference.interrupts import deferred_interrupts
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts import Member, Part, States, trained
from proxscore.inference.probes import ShardProbes
from proxscore.inference.step import Draw, ProximalStep

# Elements that one pass of in-place operations covers; three temporaries of that size live at once. On the CPU large
# enough that the calls cost less than the arithmetic, small enough for the cache; elsewhere a kernel's worth of work.
_BUCKET = {"cpu": 1 << 17}
_BUCKET_ACCELERATOR = 1 << 22


@dataclass
class _Shard:
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
    total: Tensor  # mean gradient over the draws of this step so far
    gradient: Tensor | None = None
    displacement: Tensor | None = None


class Shards(Part):
    """Parameters with a mean-field Gaussian. State of each: ``mean``, ``precision``, ``score`` (running mean of the
    gradient), ``square`` and ``step`` (running mean of its square, and how many are in it) with the adaptive metric,
    ``curvature`` if a step has several draws, and ``prior_mean`` if there is one.

    Args:
        state: the optimizer's; gets the initial values.
        draws: or pairs, of a step.
        adaptive: with the adaptive metric of the mean.
    """

    keeps_mean = True

    def __init__(self, members: list[Member], state: States, draws: int, adaptive: bool) -> None:
        self.all_members, self.members, self._draws = members, members, draws
        self._family, self._state = MeanField(), state
        self._shards: list[_Shard] = []
        self._prior_weight = 1.0  # of this step
        self._streams: dict[tuple[torch.device, torch.dtype], noise.NormalStream] = {}
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
        self._probes, self._state = ShardProbes(members), state

    def begin(self, state: States) -> None:
        self.members, self._state = trained(self.all_members), state
        self._shards = [self._shard(member, state) for member in self.members]
        if self._shards:
            torch._foreach_copy_([s.mean for s in self._shards], [s.weights for s in self._shards])

    def _shard(self, member: Member, state: States) -> _Shard:
        held = state[member.parameter]
        weights, precision, score = map(noise.local, (member.parameter, held["precision"], held["score"]))
        curvature, prior_mean, square = (
            noise.local(held[n]) if n in held else None for n in ("curvature", "prior_mean", "square")
        )
        mean = noise.local(held["mean"]) if self.keeps_mean else weights
        return _Shard(member, weights, mean, precision, score, curvature, prior_mean, square, torch.empty_like(weights))

    def sample(self, draw: Draw) -> None:
        self._prior_weight = draw.prior_weight
        if draw.sign < 0:
            self._reflect(draw)
            return
        for shard in self._shards:
            shard.member.parameter.grad = None
            weights, mean, precision = shard.weights, shard.mean, shard.precision
            stream, count, total = self._stream(weights), weights.numel(), shard.member.parameter.numel()
            for piece, values in stream.pieces(
                noise.key(draw.seed, shard.member.name), shard.member.start, count, total
            ):
                if values.numel() == count:
                    self._family.sample_(weights, mean, precision, values)
                else:
                    self._family.sample_(weights[piece], mean[piece], precision[piece], values)

    def _reflect(self, draw: Draw) -> None:
        for bucket in self._buckets():
            self._family.reflect_(bucket)

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
                self._family.curvature_(bucket, draw.scale / 2 if draw.paired else draw.scale, draw.paired)
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
        before = self._probes.before(step, self._shards, statistic)
        for bucket in self._buckets(statistic):
            ratio = self._family.update_(bucket, step)
            if monitor is not None:
                monitor.add(bucket.precision, ratio)
        if step.metric is not None:
            for shard in self._shards:
                self._state[shard.member.parameter]["step"] += 1
        if before is not None:
            self._probes.after(step, self._shards, before)
        self._shards = []

    def probed(self, momentum: float, age: int) -> Iterator[Probed]:
        yield from self._probes.probed(self._state, momentum, age)

    def save_probes(self, state: States) -> None:
        self._probes.save(state)

    def load_probes(self, state: States, age: int) -> None:
        self._state = state
        self._probes.load(state, age)

    def forget(self) -> None:
        self._shards = []

    def _buckets(self, statistic: str = "gradient") -> Iterator[Bucket]:
        yield from self._split(self._shards, statistic)

    def _split(self, shards: list[_Shard], statistic: str) -> Iterator[Bucket]:
        if shards:
            size = _BUCKET.get(shards[0].weights.device.type, _BUCKET_ACCELERATOR)
            columns = (
                "weights",
                "mean",
                "precision",
                "score",
                "total",
                statistic,
                "square",
                "prior_mean",
                "displacement",
            )
            rows = []
            for shard in shards:
                squares = 0.0 if shard.square is None else self._state[shard.member.parameter]["step"].item()
                tensors = tuple(getattr(shard, name) for name in columns)
                rows.append((tensors, shard.member.prior.precision * self._prior_weight, squares))
            yield from split(rows, size)

    def _stream(self, like: Tensor) -> noise.NormalStream:
        place = like.device, like.dtype
        if place not in self._streams:
            self._streams[place] = noise.NormalStream(*place)
        return self._streams[place]


class MeanlessShards(Shards):
    """The same without a separate mean: one number less per parameter.

    The weights are the mean. A draw is added to them and taken off again, its noise generated anew each time: equal to
    rounding, at the price of up to four times the random numbers, and of one parameter's shard at a time. Interrupts wait
    while that happens, and what an error leaves half done is taken back.
    """

    keeps_mean = False

    def __init__(self, members: list[Member], state: States, draws: int, adaptive: bool) -> None:
        super().__init__(members, state, draws, adaptive)
        self._held: Draw | None = None  # whose noise is in the weights

    def sample(self, draw: Draw) -> None:
        self._prior_weight = draw.prior_weight
        with deferred_interrupts():
            if draw.sign > 0:
                self.restore()
                for shard in self._shards:
                    shard.member.parameter.grad = None
            self._add(draw, 1.0 if draw.sign > 0 else -2.0)
            self._held = draw

    def restore(self) -> None:
        with deferred_interrupts():
            if self._held is not None:
                self._add(self._held, -self._held.sign)
            self._held = None

    def _buckets(self, statistic: str = "gradient") -> Iterator[Bucket]:
        """With the displacement of the draw that is in the weights: one parameter at a time."""
        if self._held is None:
            yield from super()._buckets(statistic)
            return
        for shard in self._shards:
            shard.displacement = torch.zeros_like(shard.weights)
            for piece, step in self._steps(shard, self._held):
                shard.displacement[piece].add_(step, alpha=self._held.sign)
            yield from self._split([shard], statistic)
            shard.displacement = None

    def _add(self, draw: Draw, factor: float) -> None:
        """weights <- weights + factor * the draw's displacement, everywhere or, if that fails, nowhere."""
        done = 0
        try:
            for weights, step in self._all_steps(draw):
                weights.add_(step, alpha=factor)
                done += 1
        except BaseException:
            for weights, step in islice(self._all_steps(draw), done):
                weights.add_(step, alpha=-factor)
            raise

    def _all_steps(self, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
        for shard in self._shards:
            for piece, step in self._steps(shard, draw):
                yield shard.weights[piece], step

    def _steps(self, shard: _Shard, draw: Draw) -> Iterator[tuple[slice, Tensor]]:
        """Pieces of the draw's displacement of one shard, noise / sqrt(precision), and where they belong."""
        key, total = noise.key(draw.seed, shard.member.name), shard.member.parameter.numel()
        for piece, values in self._stream(shard.weights).pieces(key, shard.member.start, len(shard.weights), total):
            yield piece, values * shard.precision[piece].rsqrt()
