"""The mean-field Gaussian without a separate mean: one number less per parameter, for more time for the noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from proxscore.inference import noise
from proxscore.inference.interrupts import deferred_interrupts
from proxscore.inference.members import Member
from proxscore.inference.parts.flats import Flat, ShardViews
from proxscore.inference.parts.part import States
from proxscore.inference.parts.shards import Shards
from proxscore.inference.step import Draw


class MeanlessShards(Shards):
    """Parameters with a mean-field Gaussian, whose weights are the mean.

    A draw is added to them and taken off again, its noise generated anew each time: equal to rounding, at the price of up to
    four times the random numbers, and of one parameter's shard at a time. Interrupts wait while that happens, and what an
    error leaves half done is taken back.
    """

    keeps_mean = False

    def __init__(self, members: list[Member], state: States, draws: int, adaptive: bool) -> None:
        super().__init__(members, state, draws, adaptive)
        self._held: Draw | None = None  # whose noise is in the weights

    def compilable(self) -> int:
        """None: the passes are not those of a mean that is held."""
        return 0

    def sample(self, draw: Draw) -> None:
        self._prior_weight = draw.prior_weight
        with deferred_interrupts():
            if draw.sign > 0:
                self.restore()
                for shard in self._shards:
                    shard.member.parameter.grad = shard.gradient = None
            self._add(draw, 1.0 if draw.sign > 0 else -2.0)
            self._held = draw

    def restore(self) -> None:
        with deferred_interrupts():
            if self._held is not None:
                self._add(self._held, -self._held.sign)
            self._held = None

    def _flats(
        self, shards: list[ShardViews], names: Sequence[str], changed: Sequence[str], averaged: str = "gradient"
    ) -> Iterator[Flat]:
        """Pieces with the displacement of the draw that is in the weights, one parameter at a time."""
        if self._held is None:
            yield from super()._flats(shards, names, changed, averaged)
            return
        for shard in shards:
            shard.displacement = torch.zeros_like(shard.weights)
            for piece, step in self._steps(shard, self._held):
                shard.displacement[piece].add_(step, alpha=self._held.sign)
            yield from super()._flats([shard], names, changed, averaged)
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

    def _steps(self, shard: ShardViews, draw: Draw) -> Iterator[tuple[slice, Tensor]]:
        """Pieces of the draw's displacement of one shard, noise / sqrt(precision), and where they belong."""
        seed = noise.key(draw.seed, shard.member.name)
        for piece, values in self._streams.pieces(shard.weights, seed, shard.member.start):
            yield piece, values * shard.precision[piece].rsqrt()
