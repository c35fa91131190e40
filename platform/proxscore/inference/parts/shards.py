"""The mean-field Gaussian over any number of parameters, in closed form and in place on their local shards.

Nothing is gathered: every pass is elementwise over local shards, so that sharding needs no communication, and the state is
the optimizer's, with the parameters' own placements. The passes are those of :mod:`proxscore.inference.kernels`: compiled
over each large shard where the optimizer is ``fused``, and over pieces that fit into the cache elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from proxscore.inference import kernels, noise
from proxscore.inference.convergence.shard_probes import ShardProbes
from proxscore.inference.elementwise import Settings, curvature
from proxscore.inference.interrupts import deferred_interrupts
from proxscore.inference.members import Member, still_trained
from proxscore.inference.monitor import Monitor
from proxscore.inference.parts.flats import Flat, ShardViews, flats, views
from proxscore.inference.parts.part import Part, States
from proxscore.inference.step import Draw, ProximalStep

_TAKEN = ("total", "statistic", "weights", "mean", "precision")
_STATE = ("weights", "mean", "precision", "score", "square")
_MOVED = (*_STATE, "total", "statistic", "prior_mean")
_HELD = (*_STATE, "gradient", "prior_mean")


class Shards(Part):
    """Parameters with a mean-field Gaussian. State of each: ``mean``, ``precision``, ``score`` (running mean of the
    gradient), ``square`` and ``step`` (running mean of its square, and how many are in it) with the adaptive metric,
    ``curvature`` if a step has several draws, and ``prior_mean`` if there is one.

    Where the mean is: before the first draw, in the weights (``_unread``: the first compiled draw copies it as it reads them);
    within the loop, in the state; after it, in both (``_home``: a compiled pass has brought it back already), or with ``hold``
    in the state alone (``_left``) until the step.

    Args:
        state: the optimizer's; gets the initial values.
        draws: how many draws, or pairs, a step has.
        adaptive: whether the mean has the adaptive metric.

    Attributes:
        fused: whether passes over large shards are compiled.
    """

    keeps_mean = True
    fused = False

    def __init__(self, members: list[Member], state: States, draws: int, adaptive: bool) -> None:
        self.all_members, self.members, self._draws = members, members, draws
        self._shards = list[ShardViews]()
        self._prior_weight = 1.0  # of this step
        self._totals = dict[str, Tensor]()  # kept between steps
        self._unread = set[int]()  # shards whose weights are the mean, which their state does not hold yet
        self._left = False  # whether a draw that was taken is in the weights
        self._home = set[int]()  # shards whose weights are the mean again since the draw was taken
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

    def compilable(self) -> int:
        """Numbers in shards that are large enough to be compiled for."""
        return sum(numel for member in self.all_members if (numel := _compilable(noise.local(member.parameter))))

    def begin(self, state: States) -> None:
        self.members, self._home, self._left = still_trained(self.all_members), set(), False
        self._shards = [
            views(member, state[member.parameter], self.keeps_mean, not self.hold, self._totals.get(member.name))
            for member in self.members
        ]
        if self.fused and not self.hold and self._shards and self._shards[0].weights.device.type == "cpu":
            # New memory of this size would be the system's, page by page: as slow as a pass of the arithmetic.
            self._totals = {shard.member.name: shard.total for shard in self._shards}
        self._unread = {id(s) for s in self._divided()[0] if s.member.start % 4 == 0 and len(s.weights) % 4 == 0}
        read = [shard for shard in self._shards if id(shard) not in self._unread]
        if read:
            torch._foreach_copy_([s.mean for s in read], [s.weights for s in read])

    def sample(self, draw: Draw) -> None:
        self._prior_weight, self._home = draw.prior_weight, set()
        large, rest = self._divided()
        if draw.sign < 0:
            for shard in large:
                kernels.compiled(kernels.reflect_, shard.weights, shard.mean)
            for flat in flats(rest, ("weights", "mean"), ("weights",), 1.0):
                kernels.reflect_(flat["weights"], flat["mean"])
            return
        for shard in self._shards:
            shard.member.parameter.grad = shard.gradient = None  # the last draw's would live beside this one's
        for shard, key in zip(large, self._keys(large, draw), strict=True):
            head = -shard.member.start % 4
            end = head + (len(shard.weights) - head) // 4 * 4
            body = [column[head:end].view(-1, 4) for column in (shard.weights, shard.mean, shard.precision)]
            with deferred_interrupts():
                kernels.compiled(kernels.sample_from_key_, *body, key, remember=id(shard) in self._unread)
                self._unread.discard(id(shard))
            for low, high in ((0, head), (end, len(shard.weights))):  # numbers of a counter that others have, too
                self._sample_pieces(shard, draw, low, high)
        for shard in rest:
            self._sample_pieces(shard, draw, 0, len(shard.weights))

    def _sample_pieces(self, shard: ShardViews, draw: Draw, low: int, high: int) -> None:
        """Put a draw into the numbers from ``low`` to ``high`` of a shard."""
        weights, mean, precision = (column[low:high] for column in (shard.weights, shard.mean, shard.precision))
        seed = noise.key(draw.seed, shard.member.name)
        for piece, values in self._streams.pieces(weights, seed, shard.member.start + low):
            kernels.sample_(weights[piece], mean[piece], precision[piece], values)

    def _keys(self, shards: Sequence[ShardViews], draw: Draw) -> Iterable[Tensor]:
        """For each shard the two words of its key, and the counter of the first number that begins one."""
        rows = []
        for shard in shards:
            seed = noise.key(draw.seed, shard.member.name)
            rows.append([seed & 0xFFFFFFFF, seed >> 32, -(-shard.member.start // 4)])
        return _on_device(torch.tensor(rows, dtype=torch.int64, device="cpu"), shards)

    def take(self, draw: Draw, gradients: list[Tensor]) -> None:
        for shard, gradient in zip(self._shards, gradients, strict=True):
            shard.gradient = gradient
        if self.hold:
            for shard in self._shards:
                shard.scale, shard.version = draw.scale, shard.weights._version
            self._left = True
            return
        second = draw.paired and draw.last
        share, scale = (0.5 if second else 1.0) / draw.draws, draw.scale / 2 if draw.paired else draw.scale
        flags: dict[str, Any] = dict(fresh=draw.first and not second, paired=draw.paired, last=draw.last)
        home = draw.draws == 1 and not draw.paired
        large, rest = self._divided()
        rows = [[shard.member.prior.precision * self._prior_weight, share, scale] for shard in large]
        for shard, row in zip(large, _on_device(torch.tensor(rows, device="cpu"), large), strict=True):
            assert shard.gradient is not None
            columns = shard.total, shard.gradient, shard.weights, shard.mean, shard.precision
            kernels.compiled(kernels.take_by_row_, *columns, row=row, home=home, **flags)
        for flat in self._flats(rest, _TAKEN, ("total", "statistic")):
            displaced = flat.columns["displacement"]
            at = (flat["weights"], flat["mean"]) if displaced is None else (displaced, displaced.new_zeros(()))
            columns = flat["total"], flat["statistic"], *at, flat["precision"]
            kernels.take_(*columns, prior=flat.prior, share=share, scale=scale, **flags)
        if draw.last and self._draws > 1:
            for shard in self._shards:
                assert shard.curvature is not None
                assert shard.gradient is not None
                if draw.first:  # what a skipped step left may not be finite: it is not multiplied by zero
                    shard.curvature.zero_()
                shard.curvature.add_(shard.gradient, alpha=1 / self._draws)
        self._home = {id(shard) for shard in large} if home else set()

    def taken(self) -> list[Tensor]:
        return [s.total for s in self._shards] + [s.curvature for s in self._shards if s.curvature is not None]

    def restore(self) -> None:
        if self._left:
            return
        away = [shard for shard in self._shards if id(shard) not in self._home | self._unread]
        if away:
            torch._foreach_copy_([s.weights for s in away], [s.mean for s in away])

    def step(self, step: ProximalStep, monitor: Monitor | None) -> None:
        averaged = "curvature" if self._draws > 1 else "gradient"
        before = self.probes.before(step, self._shards, averaged)
        # An infinite weight, where a schedule is at zero, is a case of its own in the formulas.
        finite = math.isfinite(step.weights[0]) and (step.metric is not None or math.isfinite(step.weights[1]))
        if self._left and not finite:
            self._take_held()
        if self._left:
            self._step_from_draw(step, monitor)
        else:
            self._step(step, monitor, averaged, finite)
        if step.metric is not None:
            for shard in self._shards:
                assert shard.squares is not None
                shard.squares += 1
        if before is not None:
            self.probes.after(step, self._shards, before)
        self._shards, self._left = [], False

    def _step(self, step: ProximalStep, monitor: Monitor | None, averaged: str, finite: bool) -> None:
        """The step from the sums over its draws; ``averaged``: which of the views is the curvature statistic."""
        large, rest = self._divided() if finite else ([], self._shards)
        for shard, row in self._settings(large, step):
            statistic = getattr(shard, averaged)
            columns = *self._state_of(shard), shard.total, statistic, shard.prior_mean
            kernels.compiled(kernels.step_by_row_, *columns, row=row, **_kind(step))
            if monitor is not None:
                monitor.add([shard.precision], [statistic])
        for flat in self._flats(rest, _MOVED, _STATE, averaged):
            moved: dict[str, Any] = {name: flat.columns[name] for name in _MOVED}
            kernels.step_(**moved, settings=Settings.of(step, flat.prior, flat.squares), **_kind(step))
            if monitor is not None:
                monitor.add([flat["precision"]], [flat["statistic"]])

    def _step_from_draw(self, step: ProximalStep, monitor: Monitor | None) -> None:
        """The step from its only draw, which is still in the weights."""
        large, rest = self._divided()
        for shard, row in self._settings(large, step):
            columns = *self._state_of(shard), shard.gradient, shard.prior_mean
            anchor = None if monitor is None else shard.precision.clone()
            kernels.compiled(kernels.step_from_draw_by_row_, *columns, row=row, **_kind(step))
            if monitor is not None and anchor is not None:
                monitor.add([shard.precision], [anchor.reciprocal_().mul_(shard.precision)])
        for flat in flats(rest, _HELD, _STATE, self._prior_weight):
            moved: dict[str, Any] = {name: flat.columns[name] for name in _HELD} | {"scale": rest[0].scale}
            settings = Settings.of(step, flat.prior, flat.squares)
            anchor = None if monitor is None else flat["precision"].clone()
            kernels.step_from_draw_(**moved, settings=settings, **_kind(step))
            if monitor is not None and anchor is not None:
                monitor.add([flat["precision"]], [anchor.reciprocal_().mul_(flat["precision"])])

    def _settings(self, shards: Sequence[ShardViews], step: ProximalStep) -> Iterator[tuple[ShardViews, Tensor]]:
        """Each shard with the settings of its step, as one tensor where it is: first c, if the step takes the gradient."""
        rows = []
        for shard in shards:
            settings = Settings.of(step, shard.member.prior.precision * self._prior_weight, shard.steps)
            rows.append([*([] if shard.scale is None else [shard.scale]), *settings])
        yield from zip(shards, _on_device(torch.tensor(rows, device="cpu"), shards), strict=True)

    @staticmethod
    def _state_of(shard: ShardViews) -> tuple[Tensor | None, ...]:
        return shard.weights, shard.mean, shard.precision, shard.score, shard.square

    def _take_held(self) -> None:
        """Take the gradients of the draw in the weights, as a step does that is no compiled pass."""
        for shard in self._shards:
            assert shard.gradient is not None
            assert shard.scale is not None
            shard.total = shard.gradient.clone()
            prior, displacement = shard.member.prior.precision * self._prior_weight, shard.weights - shard.mean
            shard.gradient.copy_(curvature(shard.total, displacement, shard.precision, prior, shard.scale))
            shard.scale = None
        self._left = False

    def forget(self) -> None:
        if self._left and self._shards:
            torch._foreach_copy_([s.weights for s in self._shards], [s.mean for s in self._shards])
        self._shards, self._left = [], False

    def written(self) -> bool:
        return self._left and any(shard.weights._version != shard.version for shard in self._shards)

    def forget_unwritten(self) -> None:
        if self._left:
            self._shards = [shard for shard in self._shards if shard.weights._version == shard.version]
        self.forget()

    def _divided(self) -> tuple[list[ShardViews], list[ShardViews]]:
        """The shards that are compiled for, and the others."""
        large = [shard for shard in self._shards if self.fused and _compilable(shard.weights)]
        return large, [shard for shard in self._shards if not (self.fused and _compilable(shard.weights))]

    def _flats(
        self, shards: list[ShardViews], names: Sequence[str], changed: Sequence[str], averaged: str = "gradient"
    ) -> Iterator[Flat]:
        """Pieces of shards; ``averaged``: which of the views their statistic is."""
        views = [averaged if name == "statistic" else name for name in (*names, "displacement")]
        for flat in flats(
            shards, views, [averaged if name == "statistic" else name for name in changed], self._prior_weight
        ):
            flat.columns["statistic"] = flat.columns[averaged]
            yield flat


def _kind(step: ProximalStep) -> dict[str, Any]:
    """What the passes of a step are told beside numbers."""
    singles = step.metric is not None and step.metric.singles is not None
    return dict(penalty=step.penalty, singles=singles, go=step.go)


def _compilable(weights: Tensor) -> int:
    """The length of a shard that is compiled for; zero: it is small, or of another type."""
    return len(weights) if len(weights) >= kernels.LARGE and weights.dtype == torch.float32 else 0


def _on_device(rows: Tensor, shards: Sequence[ShardViews]) -> Iterable[Tensor]:
    """Rows of settings where the shards are, in one transfer to each device that nothing waits for."""
    devices = {shard.weights.device for shard in shards}
    if any(device.type == "cuda" for device in devices):
        rows = rows.pin_memory()
    there = {device: rows.to(device, non_blocking=True) for device in devices}
    return [there[shard.weights.device][index] for index, shard in enumerate(shards)]
