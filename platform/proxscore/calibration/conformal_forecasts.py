"""Prediction intervals by conformalised quantile regression, for each step ahead of rolling forecasts.

The predictive's own central interval of level L, [l, u], is moved by a threshold t that held-out windows set, in units of its
width w = u - l (Romano, Patterson and Candes, arXiv 1905.03222, whose score is in the unit of the target; divided by w it is
comparable over series of different size, and wide where the predictive is wide; intervals of counts may have no width, and are
widened in units of the standard deviation, if that is larger):

    s = max(l - y, y - u) / w  >= -1/2        the score of what happened, y
    t = the ceil((n + 1) L)-th smallest of n scores of the same step ahead
    [l - t w, u + t w]                        the calibrated interval

If the windows of calibration and the new one are exchangeable, the new target is in its interval with probability at least L,
and, where scores have no ties, at most L + 1 / (n + 1): for each step ahead, on average over windows; not for each series, and
only about so where windows are neighbours in time or the series drift. Since t >= -1/2, the lower end is never above the upper
one. Intervals of a lower level are held within those of a higher one by widening the latter, which loses no coverage.

Steps are not pooled. Windows are what is exchangeable; the steps of one window are not, and its errors depend on each other:
with them weighted as hierarchical data need it (Lee, Barber and Willett, arXiv 2306.06342), as many windows are needed as
for one step, n >= L / (1 - L). Pooling would only hide which step is covered too rarely.

Under drift the threshold follows what happens (the quantile tracker of conformal PID control, Angelopoulos, Candes and
Tibshirani, arXiv 2307.16895; adaptive conformal inference, Gibbs and Candes, arXiv 2106.00170, with the threshold itself
in place of the level): after each origin whose target has become known,

    t <- max(t + gamma (share of misses - (1 - L)), -1/2)

so that the long-run share of misses is 1 - L whatever happens, if scores are bounded. The step h of a window is known h steps
after its origin: the threshold at an origin follows from targets before it, and from nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxscore.calibration.prediction_sets import rows_needed
from proxscore.config import ConfigError

#: Levels of the intervals that a posterior is saved with, ascending.
LEVELS = (0.5, 0.8, 0.9, 0.95)

LEAST = -0.5  # of a threshold: both ends meet in the middle
_TINY = float(torch.finfo(torch.float32).tiny)  # of a width: sample paths may all be equal

Floats = NDArray[np.float64]


def scores(lower: Tensor, upper: Tensor, targets: Tensor, width: Tensor | None = None) -> Tensor:
    """max(l - y, y - u) / (u - l), float64, elementwise; at most 0 where the target is within, ends included.

    Args:
        lower, upper: ends.
        targets: what happened.
        width: of targets outside, least u - l to divide by.
    """
    lower, upper, targets = lower.double(), upper.double(), targets.double()
    outside = torch.maximum(lower - targets, targets - upper)
    return outside / _width(lower, upper, torch.where(outside > 0, width, 0) if width is not None else None)


def moved(
    lower: Tensor, upper: Tensor, thresholds: Tensor, width: Tensor | None = None, least: float | None = None
) -> tuple[Tensor, Tensor]:
    """The calibrated intervals [l - t w, u + t w], nested.

    Args:
        lower, upper: (L, ...), ends of the predictive's own intervals, levels ascending.
        thresholds: that broadcast against them.
        width: least u - l that ends are moved outwards in units of, as of :func:`scores`.
        least: value that no target is below, nor any end.
    """
    lower, upper = lower.double(), upper.double()
    by = thresholds * torch.where(thresholds > 0, _width(lower, upper, width), upper - lower)
    lower, upper = torch.minimum(lower - by, upper + by).cummin(0).values, (upper + by).cummax(0).values
    return (lower, upper) if least is None else (lower.clamp_min(least), upper.clamp_min(least))


def _width(lower: Tensor, upper: Tensor, least: Tensor | None) -> Tensor:
    width = upper - lower
    return (width if least is None else torch.maximum(width, least)).clamp_min(_TINY)


def threshold_by_step(values: Tensor, observed: Tensor, level: float) -> Tensor:
    """(H,) float64: t of each step; NaN where it has too few observed scores.

    Args:
        values: (n, H), scores of one level.
        observed: (n, H) bool; other scores count nowhere.
    """
    counts = observed.sum(0)
    found = torch.full(counts.shape, math.nan, dtype=torch.float64)
    for step in (counts >= rows_needed(level)).nonzero().flatten().tolist():  # one at a time: windows may be many
        place = math.ceil((int(counts[step]) + 1) * level - 1e-9)
        found[step] = values[:, step][observed[:, step]].double().kthvalue(place).values
    return found


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of all levels and steps ahead.

    Attributes:
        levels: that are known, ascending.
        pooled: (L, H) float64, over all series.
        origins: (H,) windows whose target was observed.
        refused: other levels, and the windows that each needs at every step.
        by_group: (L, H) of each group of series that has windows enough of its own; NaN at levels for which it has not.
    """

    levels: tuple[float, ...]
    pooled: Tensor
    origins: Tensor
    refused: Mapping[float, int] = field(default_factory=dict)
    by_group: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, values: Tensor, observed: Tensor, levels: Sequence[float], groups: Sequence[str] | None = None
    ) -> Thresholds:
        """From the windows of calibration.

        Args:
            values: (L, n, H), scores at each of ``levels``, which ascend.
            observed: (n, H) bool.
            groups: (n,) names of the groups of series that windows belong to; a group that has too few takes the pooled ones.
        """
        counts = observed.sum(0)
        fewest = int(counts.min())
        held = [place for place, level in enumerate(levels) if rows_needed(level) <= fewest]
        found = torch.full((0, observed.shape[1]), math.nan, dtype=torch.float64)
        if held:
            found = torch.stack([threshold_by_step(values[place], observed, levels[place]) for place in held])
        refused = {level: needed for level in levels if (needed := rows_needed(level)) > fewest}
        own = {}
        for name in sorted(set(groups or ())) if held else ():
            rows = torch.tensor([each == name for each in groups or ()])
            each = torch.stack(
                [threshold_by_step(values[place][rows], observed[rows], levels[place]) for place in held]
            )
            each[each.isnan().any(1)] = math.nan
            if not each.isnan().all():
                own[name] = each
        return cls(tuple(levels[place] for place in held), found, counts, refused, own)

    def of_group(self, name: str | None) -> Tensor:
        """(L, H): those of a group where it has them, else the pooled ones."""
        own = None if name is None else self.by_group.get(name)
        return self.pooled if own is None else torch.where(own.isnan(), self.pooled, own)

    def of_windows(self, groups: Sequence[str | None]) -> Tensor:
        """(L, n, H), for windows of these groups."""
        by_name = {name: self.of_group(name) for name in set(groups)}
        if not groups:
            return self.pooled[:, None, :][:, :0]
        return torch.stack([by_name[name] for name in groups], 1)

    def check(self, level: float) -> None:
        """Refuse a level that was not calibrated.

        Raises:
            ConfigError: with the number of windows that it needs, and the number that there are.
        """
        if level in self.levels:
            return
        if not 0 < level < 1:
            raise ConfigError(f"the level of an interval is {level:g}; it must be between 0 and 1")
        if level in self.refused:
            raise ConfigError(
                f"level {level:g}: {int(self.origins.min())} validation windows at a step ahead are too few for it; "
                f"{self.refused[level]} are needed (task.data.validation_windows)"
            )
        known = ", ".join(f"{each:g}" for each in self.levels) or "none"
        raise ConfigError(f"level {level:g} was not calibrated when the posterior was saved; known are {known}")


def tracked(
    start: Thresholds,
    values: Tensor,
    observed: Tensor,
    times: Tensor,
    groups: Sequence[str | None],
    gamma: float,
    out: Tensor | None = None,
) -> tuple[Tensor, Thresholds]:
    """Thresholds that follow what happens, over windows in the order of their origins; see the module.

    Args:
        start: before the first of them.
        values: (L, n, H), scores of the levels of ``start``; of a step that was not observed anything.
        observed: (n, H) bool.
        times: (n,) whole numbers, the time of each origin in steps of a common clock: step h is known at time + h + 1.
        groups: (n,) of the windows.
        gamma: how far a miss moves the threshold, in widths of the interval.
        out: (L, n, H), where the thresholds are to be written.

    Returns:
        (L, n, H), of each window when it is forecast, and those after everything has become known.
    """
    used = torch.empty(values.shape, dtype=torch.float64) if out is None else out
    pooled, own = start.pooled.clone(), {name: each.clone() for name, each in start.by_group.items()}
    members: dict[str | None, list[int]] = {}
    for row, name in enumerate(groups):
        members.setdefault(name if name in own else None, []).append(row)
    for name, rows in members.items():
        begin, when = start.of_group(name).numpy(), times[rows].long().numpy()
        for step in range(observed.shape[1]):
            part, seen = values[:, rows, step].double().numpy(), observed[rows, step].numpy()
            at, end = _followed(begin[:, step], part, seen, when, step, start.levels, gamma)
            used[:, rows, step] = torch.from_numpy(at).to(used)
            (pooled if name is None else own[name])[:, step] = torch.from_numpy(end)
    return used, Thresholds(start.levels, pooled, start.origins, start.refused, own)


def _followed(
    start: Floats,
    values: Floats,
    observed: NDArray[np.bool_],
    times: NDArray[np.int64],
    step: int,
    levels: Sequence[float],
    gamma: float,
) -> tuple[Floats, Floats]:
    """(L, n) thresholds of each window and (L,) at the end, of one step ahead, from (L,), (L, n), (n,), (n,)."""
    moments, places = np.unique(times, return_inverse=True)
    rows = np.split(np.argsort(places, kind="stable"), np.cumsum(np.bincount(places))[:-1])
    share = 1 - np.asarray(levels)
    at, now, known = np.empty((len(start), len(moments))), start.copy(), 0

    def learn(moment: int) -> Floats:
        held = rows[moment][observed[rows[moment]]]
        if not held.size:
            return now
        misses = (values[:, held] > at[:, moment, None]).mean(1)
        return np.maximum(now + gamma * (misses - share), LEAST)

    for moment, time in enumerate(moments):
        while known < moment and moments[known] + step < time:
            now, known = learn(known), known + 1
        at[:, moment] = now
    while known < len(moments):
        now, known = learn(known), known + 1
    return at[:, places], now
