"""What an optimizer knows of its own convergence: statistics of a few numbers of every tensor, over the last steps.

At the optimum the expected curvature statistic is one and the expected score at the mean zero:

    E k = Lambda* / Lambda = (sd / sd*)^2,          E u = (mean* - mean) / sd   (times k),

with Lambda* the precision that the objective asks for at the current iterate. So averages of k and u over steps measure how
far standard deviations and mean are from where they should be, which the size of their movement does not: a precision that a
large penalty holds does not move either. As k's own error is known (its noise is fresh in every step), so is what the
averages can tell.

Watched are *probes*: a few numbers of every row of a tensor (all of a small one), the same ones in every run. Sums are kept
over two windows, of which the older one is complete: together the last tenth to fifth of the steps, at any time, whatever the
length of the run. A window of n steps begins at step 9 n; beyond 4,096 steps, some are left out. Sharded parameters are
watched by shards, without communication. The sums, 20 numbers for each that is watched, are saved with the optimizer's state;
of a state without them, windows begin anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import zeros as distributed_zeros

from proxscore.inference import noise

#: Numbers of a tensor that are watched, about: at least one in each row.
PROBES = 256
#: Sides of the block of a full covariance's curvature statistic that is watched.
SIDE = 64
#: Name of the statistics in the optimizer's state.
KEY = "probes"

_FEWEST = 8  # steps of a window
_EVERY = 4096  # steps after which every second one is left out, and so on
_COUNT, _K, _KK, _U, _UU, _M, _CLIPPED_P, _CLIPPED_M, _M0, _L0 = range(10)
_WIDTH = 10
#: Standard deviations beyond those of the prior, or those at the start where it is flat, that no posterior has.
BEYOND_PRIOR, BEYOND_START = 100.0, 1e6


class RunawayError(FloatingPointError):
    """Precisions or means that left every plausible range; ``wider``: that of the standard deviations."""

    def __init__(self, name: str, what: str, wider: bool) -> None:
        self.name, self.what, self.wider = name, what, wider
        super().__init__(f"the posterior of {name} has diverged: {what}; {self.remedy()}")

    def remedy(self, section: str = "") -> str:
        """What to set.

        Args:
            section: of a configuration, with its dot, that the settings are in.
        """
        larger = f"{section}penalty.precision or {section}draws, {section}paired=true"
        if self.wider:
            return f"use a larger {larger}, or a larger {section}initial_precision"
        return f"use a larger {larger}, or a smaller {section}max_log_precision_step, and look for bad inputs"


def windows(age: int) -> tuple[int, int, int]:
    """Where the older and the current window begin after so many steps, and which steps of it are watched (every n-th)."""
    older = begun = 0
    while begun + _length(begun) <= age:
        older, begun = begun, begun + _length(begun)
    return older, begun, 1 + begun // _EVERY


def _length(begun: int) -> int:
    return max(_FEWEST, begun // 9)


class Windows:
    """Sums over the two windows, for n numbers, and for a square of them where pairs are watched.

    Args:
        count: n.
        side: of the square, or zero.
        like: gives type and device.
    """

    def __init__(self, count: int, side: int, like: Tensor) -> None:
        self.sums = like.new_zeros(2, count, _WIDTH)
        self.squares = like.new_zeros(2, 2, side, side)  # window; sum and sum of squares
        self._begun, self._until, self.every = 0, _length(0), 1

    def watched(self, age: int) -> bool:
        """Whether step ``age`` (counted from zero) is; opens a new window where it is time."""
        if not self._begun <= age < self._until:
            _, begun, self.every = windows(age)
            if begun == self._until:  # the next one; else the numbers were loaded, and belong to where they say
                self.sums[0], self.squares[0] = self.sums[1], self.squares[1]
                self.sums[1], self.squares[1] = 0.0, 0.0
            self._begun, self._until = begun, begun + _length(begun)
        return (age - self._begun) % self.every == 0

    def at(self, age: int) -> None:
        """What was loaded is of a run of so many steps."""
        _, self._begun, self.every = windows(max(age - 1, 0))
        self._until = self._begun + _length(self._begun)

    def add(self, seen: Seen, rows: Tensor | None = None) -> None:
        """A step. ``rows``: those that took part; none: all."""
        held = self.sums[1] if rows is None else self.sums[1, rows]
        new = held[:, _COUNT] == 0
        held[:, _M0] = torch.where(new, seen.mean, held[:, _M0])
        held[:, _L0] = torch.where(new, seen.log_precision, held[:, _L0])
        change = seen.log_precision - held[:, _L0]
        k = seen.curvature * change.exp() if seen.own_scale else seen.curvature
        moved = (seen.mean - held[:, _M0]) * (0.5 * held[:, _L0]).exp()
        columns = (torch.ones_like(k), k, k * k, seen.score, seen.score**2, moved, seen.clipped, seen.clipped_mean)
        held[:, : len(columns)] += torch.stack(columns, 1)
        if rows is not None:
            self.sums[1, rows] = held
        if seen.square is not None:
            self.squares[1, 0] += seen.square
            self.squares[1, 1] += seen.square**2

    def flat(self) -> Tensor:
        """All of it, as a vector."""
        return torch.cat([self.sums.reshape(-1), self.squares.reshape(-1)])

    def fill(self, vector: Tensor | None) -> None:
        """Take :meth:`flat` of another time; none, or of another size: nothing was seen."""
        if vector is None or vector.numel() != self.sums.numel() + self.squares.numel():
            self.sums.zero_()
            self.squares.zero_()
            return
        sums, squares = vector.reshape(-1).to(self.sums).split([self.sums.numel(), self.squares.numel()])
        self.sums.copy_(sums.view_as(self.sums))
        self.squares.copy_(squares.view_as(self.squares))


@dataclass
class Seen:
    """Of the numbers that are watched, in one step, before it; (n,) each.

    Attributes:
        curvature: statistic k.
        score: smoothed score at the mean, in standard deviations.
        mean, log_precision: m, log Lambda.
        clipped, clipped_mean: whether a trust region cut the step of precision or mean.
        own_scale: k is of these numbers, in units of 1 / Lambda; else of other axes, which move with the posterior.
        square: (p, p), the curvature statistic's matrix for some axes.
    """

    curvature: Tensor
    score: Tensor
    mean: Tensor
    log_precision: Tensor
    clipped: Tensor
    clipped_mean: Tensor
    own_scale: bool = True
    square: Tensor | None = None


@dataclass
class Probed:
    """What is known of one tensor's (or block's) probes now, in double precision on the CPU; (n,) each.

    Attributes:
        name: of the tensor, or all of a block's joined by ``, ``.
        numbers: of the shard.
        first: index of the shard's first number in the whole.
        steps: of the window that were seen.
        curvature, curvature_error: average of k in units of the current precision, and its standard error; nan where there is
            none.
        score, score_error: average score, in standard deviations, and its standard error.
        lag: current mean less its average over the window, in standard deviations.
        drift, drift_log_precision: current value less that at the window's start; of the mean in standard deviations.
        clipped, clipped_mean: shares of the steps.
        prior_share: of the precision that is the prior's; zero for a flat one.
        prior_distance: of the mean, in the prior's standard deviations.
        log_precision: now.
        square, square_error: (p, p) average of the statistic's matrix.
        size: numbers that the matrix is of.
        coarse: k says something of all numbers together alone.
        condition: of a full covariance.
    """

    name: str
    numbers: int
    first: int
    steps: float
    curvature: Tensor
    curvature_error: Tensor
    score: Tensor
    score_error: Tensor
    lag: Tensor
    drift: Tensor
    drift_log_precision: Tensor
    clipped: Tensor
    clipped_mean: Tensor
    prior_share: Tensor
    prior_distance: Tensor
    log_precision: Tensor
    square: Tensor | None = None
    square_error: Tensor | None = None
    size: int = 0
    coarse: bool = False
    condition: float = math.nan


@dataclass
class Now:
    """Of the numbers that are watched: mean, log-precision, prior precision and mean, now; (n,) each."""

    mean: Tensor
    log_precision: Tensor
    prior_precision: Tensor
    prior_mean: Tensor


def probed(
    name: str, numbers: int, first: int, sums: Tensor, now: Now, every: int, momentum: float, own_scale: bool = True
) -> Probed:
    """The averages over both windows.

    Args:
        sums: (2, n, columns) of a :class:`Windows`.
        every: of so many steps one was seen.
        momentum: decay of the smoothed score, which correlates its values.
    """
    s = sums.detach().double().cpu()
    mean, log, prior_precision, prior_mean = (
        each.detach().double().cpu() for each in (now.mean, now.log_precision, now.prior_precision, now.prior_mean)
    )
    count = s[..., _COUNT]
    seen, total = count > 0, count.sum(0).clamp_min(1)
    to_now = (s[..., _L0] - log).exp() if own_scale else torch.ones_like(count)

    def average(column: int, factor: Tensor | float = 1.0) -> Tensor:
        return torch.where(seen, s[..., column] * factor, 0).sum(0) / total

    k, kk = average(_K, to_now), average(_KK, to_now**2)
    u, uu = average(_U), average(_UU)
    correlated = (1 + momentum**every) / (1 - momentum**every)
    deviation = (-0.5 * log).exp()
    window_mean = average(_M, (-0.5 * s[..., _L0]).exp()) + torch.where(seen, s[..., _M0] * count, 0).sum(0) / total
    start = torch.where(seen[0], s[0, :, _M0], s[1, :, _M0])
    start_log = torch.where(seen[0], s[0, :, _L0], s[1, :, _L0])
    unseen = count.sum(0) == 0
    nan = torch.full_like(k, math.nan)

    def error(square: Tensor, value: Tensor, factor: float = 1.0) -> Tensor:
        spread = ((square - value**2).clamp_min(0) * factor / (total - 1).clamp_min(1)).sqrt()
        return torch.where(total > 1, spread, math.inf)

    return Probed(
        name,
        numbers,
        first,
        count.sum(0).max().item() if len(k) else 0.0,
        torch.where(unseen, nan, k),
        error(kk, k),
        torch.where(unseen, nan, u),
        error(uu, u, correlated),
        torch.where(unseen, nan, (mean - window_mean) / deviation),
        torch.where(unseen, nan, (mean - start) / deviation),
        torch.where(unseen, nan, log - start_log),
        average(_CLIPPED_P),
        average(_CLIPPED_M),
        prior_precision * (-log).exp(),
        (mean - prior_mean) * prior_precision.sqrt(),
        log,
    )


# ------------------------------------------------------------ which numbers are watched


def rows_and_columns(parameter: Tensor) -> tuple[int, int]:
    """A parameter as a matrix: its first dimension, and all others."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return rows, parameter.numel() // max(rows, 1)


def per_row(parameter: Tensor) -> int:
    """Numbers of each row that are watched."""
    rows, columns = rows_and_columns(parameter)
    return min(columns, -(-PROBES // max(rows, 1)))


def indices(parameter: Tensor, start: int, name: str) -> Tensor:
    """The numbers of a local shard that are watched: every row's, spread over its columns, the same however it is sharded.

    Args:
        start: index of the shard's first number in the whole.
    """
    _, columns = rows_and_columns(parameter)
    shard, each = noise.local(parameter), per_row(parameter)
    count = len(shard) // columns if columns else 0
    row = torch.arange(count, device=shard.device)[:, None]
    offset = noise.key(0, KEY, name) % max(columns, 1)
    turned = (row + start // max(columns, 1)) * (int(0.618 * columns) | 1) + offset
    spread = (torch.arange(each, device=shard.device) * columns)[None] // max(each, 1)
    return (row * columns + (turned + spread) % max(columns, 1)).reshape(-1)


def room(parameter: Tensor) -> Tensor:
    """Zeros for a parameter's sums, (rows, numbers of a row, 2 x columns), sharded as its rows are."""
    shape = (rows_and_columns(parameter)[0], per_row(parameter), 2 * _WIDTH)
    if isinstance(parameter, DTensor):
        return distributed_zeros(
            *shape, dtype=parameter.dtype, device_mesh=parameter.device_mesh, placements=parameter.placements
        )
    return parameter.detach().new_zeros(shape)


def packed(sums: Tensor) -> Tensor:
    """(2, n, columns) as the local part of :func:`room`, flat."""
    return sums.permute(1, 0, 2).reshape(-1)


def unpacked(flat: Tensor) -> Tensor:
    """The other way."""
    return flat.reshape(-1, 2, _WIDTH).permute(1, 0, 2)


# ------------------------------------------------------------ runaways


def check(
    names: Sequence[str], sizes: Sequence[int], log_precision: Tensor, prior: Tensor, initial: Tensor, mean: Tensor
) -> None:
    """Raise where something has left every plausible range: for a step in training, (n,) each but the names.

    Standard deviations beyond 100 times the prior's (or, where it is flat, a million times those at the start), or below a
    millionth of those at the start, are no posterior's.

    Raises:
        RunawayError: names the tensor.
    """
    start = initial.log()
    lowest = torch.where(prior > 0, prior.log() - 2 * math.log(BEYOND_PRIOR), start - 2 * math.log(BEYOND_START))
    lowest = torch.minimum(lowest, start - 2 * math.log(BEYOND_PRIOR))
    highest = torch.maximum(start, torch.where(prior > 0, prior.log(), start)) + 2 * math.log(BEYOND_START)
    fine = (log_precision > lowest) & (log_precision < highest) & mean.isfinite()
    if bool(fine.all()):
        return
    index = int((~fine).nonzero()[0])
    ends = torch.tensor(sizes).cumsum(0)
    name = names[int((ends > index).nonzero()[0])]
    log, at = log_precision[index].item(), mean[index].item()
    if not math.isfinite(at) or math.isnan(log):
        raise RunawayError(
            name, f"its mean is {at:g} and its precision {math.exp(min(log, 700.0)):g} somewhere", wider=False
        )
    deviation, times = math.exp(-0.5 * log), math.exp(0.5 * (start[index].item() - log))
    wider = log <= lowest[index].item()
    prior_scale = prior[index].item() ** -0.5 if prior[index] > 0 else math.inf
    beside = f", the prior's is {prior_scale:.3g}" if wider and math.isfinite(prior_scale) else ""
    raise RunawayError(
        name, f"a standard deviation is {deviation:.3g}, {times:.3g} times that at the start{beside}", wider
    )
