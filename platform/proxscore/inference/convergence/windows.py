"""Sums over the last steps: two windows of steps, of which the older one is complete."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SHORTEST = 8  # steps that a window has at least
_THINNED_AFTER = 4096  # steps after which every second step is watched, after twice as many every third, and so on
_SELDOM_FROM = 1 << 15  # numbers from which on half the steps are watched, of twice as many a third, and so on

#: The columns of the sums; those of the two last are the mean and the log-precision in a window's first step.
COUNT, K, KK, U, UU, M, CLIPPED_P, CLIPPED_M, M0, L0 = range(10)
WIDTH = 10


@dataclass
class Seen:
    """What one step showed of the n numbers that are watched, just before it moved them; tensors are (n,).

    Attributes:
        curvature: curvature statistic k.
        score: running mean of the score at the mean, in standard deviations.
        mean, log_precision: m and log Lambda.
        clipped, clipped_mean: one where a trust region cut the step of the precision, or of the mean, else zero.
        own_scale: whether k belongs to these numbers, in units of 1 / Lambda; else to axes that move with the posterior.
        square: (p, p), the curvature statistic's matrix for p of the axes.
    """

    curvature: Tensor
    score: Tensor
    mean: Tensor
    log_precision: Tensor
    clipped: Tensor
    clipped_mean: Tensor
    own_scale: bool = True
    square: Tensor | None = None


def windows(age: int, numbers: int = 0) -> tuple[int, int, int]:
    """The steps at which the older and the current window begin at step ``age``, and n where every n-th step is watched.

    Args:
        numbers: how many numbers are watched of the whole network: of many, fewer steps say as much and cost less, but of no
            window less than its shortest length.
    """
    older = begun = 0
    while begun + _length(begun) <= age:
        older, begun = begun, begun + _length(begun)
    thinned = 1 + begun // _THINNED_AFTER
    return older, begun, thinned * min(1 + numbers // _SELDOM_FROM, max(1, _length(begun) // (thinned * _SHORTEST)))


def _length(begun: int) -> int:
    """How many steps the window has that begins at step ``begun``."""
    return max(_SHORTEST, begun // 9)


class Windows:
    """Sums over the two windows for n numbers, and of a matrix for pairs of some of them.

    Args:
        count: n.
        side: rows of the matrix; zero: there is none.
        like: a tensor of the sums' type and device.
        numbers: how many numbers are watched of the whole network, on all shards.
    """

    def __init__(self, count: int, side: int, like: Tensor, numbers: int = 0) -> None:
        self._numbers = numbers
        self.sums = like.new_zeros(2, count, WIDTH)
        self.squares = like.new_zeros(2, 2, side, side)  # by window: the sum, and the sum of squares
        self._begun, self._until, self.every = 0, _length(0), 1

    def watched(self, age: int) -> bool:
        """Whether step ``age`` (counted from zero) is watched; a new window begins where it is due."""
        if not self._begun <= age < self._until:
            _, begun, self.every = windows(age, self._numbers)
            if begun == self._until:  # the next window; otherwise the sums were loaded, and their steps are not these
                self.sums[0], self.squares[0] = self.sums[1], self.squares[1]
                self.sums[1], self.squares[1] = 0.0, 0.0
            self._begun, self._until = begun, begun + _length(begun)
        return (age - self._begun) % self.every == 0

    @property
    def spacing(self) -> int:
        """How many steps lie between two that are watched, in the window where they are fewer: the older one."""
        return windows(max(self._begun - 1, 0), self._numbers)[2]

    def first_of(self, age: int, steps: int) -> bool:
        """Whether a step that is watched is the first such one among the ``steps`` from a multiple of their number on."""
        return age % steps < self.every

    def resume(self, age: int) -> None:
        """Go on after step ``age``, whose sums were loaded."""
        _, self._begun, self.every = windows(max(age - 1, 0), self._numbers)
        self._until = self._begun + _length(self._begun)

    def add(self, seen: Seen, rows: Tensor | None = None, go: Tensor | None = None) -> None:
        """Add a step to the current window.

        Args:
            rows: which of the numbers took part; none: all.
            go: whether the step was taken, without dimensions: if not, nothing is added; none: it was.
        """
        held = self.sums[1] if rows is None else self.sums[1, rows]
        new = held[:, COUNT] == 0
        held[:, M0] = torch.where(new, seen.mean, held[:, M0])
        held[:, L0] = torch.where(new, seen.log_precision, held[:, L0])
        change = seen.log_precision - held[:, L0]
        k = seen.curvature * change.exp() if seen.own_scale else seen.curvature
        moved = (seen.mean - held[:, M0]) * (0.5 * held[:, L0]).exp()
        columns = (torch.ones_like(k), k, k * k, seen.score, seen.score**2, moved, seen.clipped, seen.clipped_mean)
        added = torch.stack(columns, 1)
        held[:, : len(columns)] += added if go is None else torch.where(go, added, 0.0)
        if rows is not None:
            self.sums[1, rows] = held
        if seen.square is not None:
            self.squares[1, 0] += seen.square
            self.squares[1, 1] += seen.square**2

    def as_vector(self) -> Tensor:
        """All sums as one vector, to be saved."""
        return torch.cat([self.sums.reshape(-1), self.squares.reshape(-1)])

    def load_vector(self, vector: Tensor | None) -> None:
        """Take over saved sums; where there are none, or those of another size, the windows are empty."""
        if vector is None or vector.numel() != self.sums.numel() + self.squares.numel():
            self.sums.zero_()
            self.squares.zero_()
            return
        sums, squares = vector.reshape(-1).to(self.sums).split([self.sums.numel(), self.squares.numel()])
        self.sums.copy_(sums.view_as(self.sums))
        self.squares.copy_(squares.view_as(self.squares))
