"""Where a forecast starts from: a path for each window, made of its own past, about which a network predicts what is left.

A window's past y (L) is told in units of its own: a level r, the mean of its last steps, and a scale s, the mean step
|y_t - y_(t-m)| over its season m. With z = (y - r) / s a network that is anchored predicts

    y_(t+h) = r + s (path_h + spread_h x_h),        x_h about 0, of scale about 1,

so that series of any size, and at any level, are one problem, and a network that has learned nothing yet forecasts the path.

* :class:`LinearAnchor`: path = z W, for all series one matrix (L, H): a ridge regression of the H steps on the L before,
  shrunk towards no change or towards the last season. Shrinkage and target are those with the least absolute error in
  blocked cross-validation over time, level and scale those with the likeliest errors. While a network trains, the path of a
  window comes from the regression without its own block (cross-fitting, as in stacking: Wolpert, 1992): what is left of a path
  that had seen its window is too small.
* :class:`GivenAnchor`: path and spread come with the window, from a method that is fitted series by series.

The spread of the linear anchor is that of cross-validated errors, by step, and grows where the past is unlike those of training,
as a linear regression's does; see :mod:`.distances`.

Montero-Manso and Hyndman (2021), Principles and algorithms for forecasting groups of time series: locality and globality;
Kim et al. (2022), Reversible instance normalization.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.forecasting.distances import Distance, Moments
from proxscore.forecasting.windows import OBSERVED, Windows

MEANS = (2, 4, 8)  # seasons whose mean shrinkage may be towards
BLOCKS = 5  # of time, that cross-validation leaves out in turn
METHODS = ("theta", "climatology")  # that forecasts may be given by
LONGEST_PAST = 10**6  # steps of a season
LONGEST = 1024  # steps of the past that the regression looks at
WINDOWS = 20_000  # at most, that it is fitted to
SHRINKAGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e6)  # of the mean square of z; the last leaves the target alone
SHRINKAGE = 1e-2  # of distances, where no regression is fitted
_TO_DEVIATION = 1.2533141373155  # sqrt(pi / 2): a Gaussian's standard deviation by its mean absolute deviation


def seen(fields: dict[str, Tensor]) -> Tensor:
    """(B, L) which steps of the past are observed: 1, or 0."""
    return fields[OBSERVED] if OBSERVED in fields else fields["past_observed_values"]


@dataclass(frozen=True)
class Units:
    """Level and scale of windows.

    Attributes:
        last: steps whose mean is the level; 1: the last value.
        season: lag of the differences whose mean size is the scale.
        floor: least scale, in the unit of the target.
    """

    last: int
    season: int
    floor: float

    def of(self, past: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) values and flags to z (B, L), level (B, 1) and scale (B, 1).

        A missing step, or one before a series begins, is as the next one of its place in the season; 0, if there is none.
        """
        seen = observed > 0
        level, some = _mean(past[:, -self.last :], seen[:, -self.last :])
        everywhere, any_seen = _mean(past, seen)
        level = torch.where(some, level, torch.where(any_seen, everywhere, 0))
        scale, pairs = _steps(past, seen, self.season)
        if self.season > 1:
            single, _ = _steps(past, seen, 1)
            scale = torch.where(pairs, scale, single)
        scale = scale.clamp_min(max(self.floor, 1e-9))
        return _filled((past - level) / scale, seen, self.season), level, scale


def _filled(values: Tensor, seen: Tensor, season: int) -> Tensor:
    """(B, L) with the next observed value a number of seasons later, where a step is missing; 0: there is none."""
    before = -values.shape[1] % season
    shape = len(values), -1, season
    own = nn.functional.pad(values, (before, 0)).view(shape).flip(1)
    known = nn.functional.pad(seen, (before, 0)).view(shape).flip(1)
    seasons = torch.arange(own.shape[1], device=values.device)[:, None]
    place = torch.where(known, seasons, -1).cummax(1).values
    found = torch.where(place >= 0, own.gather(1, place.clamp_min(0)), 0)
    return found.flip(1).flatten(1)[:, before:]


def _mean(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Of what is seen (B, 1), and whether there is any."""
    count = seen.sum(1, keepdim=True)
    return torch.where(seen, values, 0).sum(1, keepdim=True) / count.clamp_min(1), count > 0


def _steps(past: Tensor, seen: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    """Mean |y_t - y_(t-lag)| (B, 1), and whether there is any pair."""
    if past.shape[1] <= lag:
        return past.new_zeros(len(past), 1), torch.zeros(len(past), 1, dtype=torch.bool, device=past.device)
    return _mean((past[:, lag:] - past[:, :-lag]).abs(), seen[:, lag:] & seen[:, :-lag])


@dataclass(frozen=True)
class Anchored:
    """Windows in their own units: z (B, L), level (B, 1), scale (B, 1), path (B, H) and spread (B, H) in units of the scale."""

    z: Tensor
    level: Tensor
    scale: Tensor
    path: Tensor
    spread: Tensor


class Anchor(nn.Module, ABC):
    """Path and spread of each window.

    Args:
        units: of the windows.
        length: L, steps that the distance from training windows looks at.

    Attributes:
        distance: of windows from those of training.
    """

    def __init__(self, units: Units, length: int) -> None:
        super().__init__()
        self.units, self.distance = units, Distance(length)

    @property
    def length(self) -> int:
        """L."""
        return len(self.distance.whitening)

    def forward(self, fields: dict[str, Tensor]) -> Anchored:
        """Of fields ``past_target`` and ``past_observed_values`` (B, L), and what only anchors read, which it removes."""
        z, level, scale = self.units.of(fields["past_target"], seen(fields))
        fields.pop(OBSERVED, None)
        path, spread = self.paths(z, level, scale, fields)
        return Anchored(z, level, scale, path, spread)

    @abstractmethod
    def paths(self, z: Tensor, level: Tensor, scale: Tensor, fields: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Path and spread (B, H), in units of the scale."""

    def unlike(self, fields: dict[str, Tensor]) -> Tensor | None:
        """(B,) bool: whether a window's past is unlike those of training; none: there were too few to tell."""
        if not self.distance.known:
            return None
        observed = seen(fields)
        z, _, scale = self.units.of(fields["past_target"], observed)
        return self.distance.unlike(z[:, -self.length :], scale, observed[:, -self.length :])


class LinearAnchor(Anchor):
    """A linear map of the last steps, equal for all series.

    Args:
        units: of the windows.
        length: L, steps that are looked at.
        horizon: H.

    Attributes:
        weights: (1 + BLOCKS, L, H): of all windows, and without each block.
        spread: (H,).
    """

    weights: Tensor
    spread: Tensor

    def __init__(self, units: Units, length: int, horizon: int) -> None:
        super().__init__(units, length)
        self.register_buffer("weights", torch.zeros(1 + BLOCKS, length, horizon))
        self.register_buffer("spread", torch.ones(horizon))

    def paths(self, z: Tensor, level: Tensor, scale: Tensor, fields: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`Anchor`. Reads the field ``fold``: the block that a training window belongs to, from 1; others are 0."""
        fold = fields.pop("fold")[:, 0].long()
        recent = z[:, -self.length :]
        path = recent @ self.weights[0]
        for block in range(1, len(self.weights)):
            path = torch.where((fold == block)[:, None], recent @ self.weights[block], path)
        return path, self.spread * self.distance.wider(recent)


class GivenAnchor(Anchor):
    """What comes with each window: the field ``anchor`` (B, H, 2), means and standard deviations.

    Args:
        units: of the windows.
        length: L, steps that the distance from training windows looks at.
        method: that the forecasts are made by, a key of :data:`proxscore.forecasting.baselines.BASELINES`.
        season: of the method; steps.
    """

    def __init__(self, units: Units, length: int, method: str, season: int) -> None:
        super().__init__(units, length)
        self.method, self.season = method, season

    def paths(self, z: Tensor, level: Tensor, scale: Tensor, fields: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`Anchor`."""
        mean, deviation = fields.pop("anchor").unbind(-1)
        return (mean - level) / scale, (deviation / scale).clamp_min(1e-2)


def fit(windows: Windows, horizon: int, units: Units, seasons: Sequence[int], unit: float) -> LinearAnchor:
    """The linear anchor of training windows, in the units whose forecasts of left-out blocks are the likeliest.

    Args:
        windows: of training, with folds.
        horizon: H.
        units: of the windows; the level may be the last value or the mean of the last season, the scale that of steps over a
            season or of single ones, which are the better measure of series without a season.
        seasons: lags that shrinkage may be towards.
        unit: what the network counts targets in.
    """
    rows = _Rows.of(windows, unit)
    found = [_regression(rows, replace(units, last=last), seasons, horizon) for last in {1, units.season}]
    if units.season > 1:
        best = min(found, key=lambda pair: pair[1])[0].units
        found.append(_regression(rows, replace(best, season=1), seasons, horizon))
    return min(found, key=lambda pair: pair[1])[0]


def given(windows: Windows, units: Units, method: str, unit: float) -> GivenAnchor:
    """An anchor by a method, of no season yet, which knows what windows are usual.

    Args:
        windows: of training, with folds.
        units: of the windows.
        method: a key of :data:`proxscore.forecasting.baselines.BASELINES`.
        unit: what the network counts targets in.
    """
    rows = _Rows.of(windows, unit)
    anchor, problem = GivenAnchor(units, rows.past.shape[1], method, 1), _Problem.of(rows, units)
    if problem is not None:
        problem.known_to(anchor.distance, SHRINKAGE, rows.apart)
    return anchor


@dataclass(frozen=True)
class _Rows:
    """Windows, at most ``WINDOWS`` of them evenly spaced: past (N, L), flags (N, L), targets and flags (N, H), folds (N,); and
    how many windows there are room for without overlap."""

    apart: float
    past: Tensor
    observed: Tensor
    target: Tensor
    seen: Tensor
    fold: Tensor

    @classmethod
    def of(cls, windows: Windows, unit: float, batch: int = 512) -> _Rows:
        packing, parts = windows.panel.packing, []
        items = torch.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).long().tolist()
        for first in range(0, len(items), batch):
            inputs, targets = windows.__getitems__(items[first : first + batch])
            fields = packing.unpack(inputs)
            past, observed = fields["past_target"][:, -LONGEST:], seen(fields)[:, -LONGEST:]
            parts.append((past / unit, observed, targets[:, 0] / unit, targets[:, 1] > 0, fields["fold"][:, 0]))
        spans = pd.Series(windows.index[:, 1]).groupby(windows.index[:, 0]).agg(np.ptp)
        apart = float((spans / windows.panel.horizon + 1).sum())
        return cls(apart, *(torch.cat(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Problem:
    """Windows with all their targets, in their own units: past (N, L), scale (N, 1), flags (N, L), targets (N, H), folds (N,);
    and moments without each block, and of all."""

    z: Tensor
    scale: Tensor
    observed: Tensor
    target: Tensor
    fold: Tensor
    without: list[Moments]
    total: Moments

    @classmethod
    def of(cls, rows: _Rows, units: Units) -> _Problem | None:
        """None: too few windows."""
        whole = rows.seen.all(1)
        if whole.sum() < 2 * BLOCKS:
            return None
        z, target, scale = (part[whole] for part in _in_units(rows, units))
        fold, size = rows.fold[whole].long(), target.abs().mean(1)
        weight = (
            1 / (size / size.median().clamp_min(1e-12)).clamp_min(1).square()
        )  # some windows are far off: Huber's, squared
        moments = [Moments.of(z[fold == k], target[fold == k], weight[fold == k]) for k in range(1, BLOCKS + 1)]
        total = sum(moments[1:], moments[0])
        return cls(z, scale, rows.observed[whole], target, fold, [total - part for part in moments], total)

    def left(self, maps: Tensor) -> Tensor:
        """(N, H) what maps (BLOCKS, L, H) without each block leave of the targets in it."""
        parts = [self.target[self.fold == k] - self.z[self.fold == k] @ maps[k - 1] for k in range(1, BLOCKS + 1)]
        return torch.cat(parts)

    def known_to(self, distance: Distance, shrinkage: float, apart: float) -> None:
        """Tell what is usual of these windows."""
        distance.set(self.z, self.scale, self.observed, self.fold, self.without, self.total, shrinkage, apart)


def _in_units(rows: _Rows, units: Units) -> tuple[Tensor, Tensor, Tensor]:
    """z (N, L), targets (N, H) and scale (N, 1)."""
    z, level, scale = (part.double() for part in units.of(rows.past, rows.observed))
    return z, (rows.target.double() - level) / scale, scale


def _regression(rows: _Rows, units: Units, seasons: Sequence[int], horizon: int) -> tuple[LinearAnchor, float]:
    """With the mean negative log-likelihood of errors in cross-validation, as of Laplace's distribution with their mean size."""
    anchor = LinearAnchor(units, rows.past.shape[1], horizon)
    problem = _Problem.of(rows, units)
    if problem is None:  # too few to fit: no change, with the spread that there is
        _, target, _ = _in_units(rows, units)
        spread = _mean(target.abs().flatten()[None], rows.seen.flatten()[None])[0].clamp_min(1e-3)
        anchor.spread.fill_(float(spread) * _TO_DEVIATION)
        return anchor, 0.0
    best, errors = None, torch.empty(0)
    for start in _targets(anchor.length, horizon, seasons):
        for shrinkage in SHRINKAGES:
            maps = torch.stack([part.solved(start, shrinkage) for part in problem.without])
            own = problem.left(maps)
            if best is None or own.abs().mean() < best[0]:
                best, errors = (own.abs().mean(), start, shrinkage, maps), own
    assert best is not None
    _, start, shrinkage, maps = best
    anchor.weights.copy_(torch.cat([problem.total.solved(start, shrinkage)[None], maps]))
    anchor.spread.copy_((errors.abs().mean(0) * _TO_DEVIATION).clamp_min(1e-3))
    problem.known_to(anchor.distance, shrinkage, rows.apart)
    return anchor, float(problem.scale.log().mean() + errors.abs().mean(0).clamp_min(1e-12).log().mean())


def _targets(length: int, horizon: int, seasons: Sequence[int]) -> Iterator[Tensor]:
    """Maps (L, H) that shrinkage may be towards: the level; the last season; and that, shifted by the last change over it."""
    yield torch.zeros(length, horizon, dtype=torch.float64)
    steps = torch.arange(horizon)
    for season in seasons:
        if season >= length:
            continue
        last = torch.zeros(length, horizon, dtype=torch.float64)
        last[length - season + steps % season, steps] = 1.0
        yield last
        shifted = last.clone()
        shifted[-1] += 1.0
        shifted[-1 - season] -= 1.0
        yield shifted
        for count in MEANS:
            if count * season <= length:
                starts = [length - k * season + steps % season for k in range(1, count + 1)]
                mean = torch.zeros(length, horizon, dtype=torch.float64)
                for start in starts:
                    mean[start, steps] += 1.0 / count
                yield mean


def described(anchor: Anchor | None) -> dict[str, Any] | None:
    """What a run records of it, enough to make it anew with numbers that are to be loaded."""
    if anchor is None:
        return None
    units = {"last": anchor.units.last, "season": anchor.units.season, "floor": anchor.units.floor}
    units |= {"length": anchor.length}
    if isinstance(anchor, LinearAnchor):
        return {"kind": "linear", **units}
    assert isinstance(anchor, GivenAnchor)
    return {"kind": "given", **units, "method": anchor.method, "method_season": anchor.season}


def as_described(record: dict[str, Any], horizon: int) -> Anchor:
    """An anchor as :func:`described` says, with numbers that are to be loaded."""
    units = Units(record["last"], record["season"], record["floor"])
    if record["kind"] == "given":
        return GivenAnchor(units, record["length"], record["method"], record["method_season"])
    return LinearAnchor(units, record["length"], horizon)


def check_described(record: Any, where: str) -> None:
    """Whether a record says what :func:`as_described` needs.

    Raises:
        ConfigError: it does not; ``where`` is the entry.
    """
    if record is None:
        return
    if not isinstance(record, dict) or record.get("kind") not in ("linear", "given"):
        raise ConfigError(f"{where}: its kind must be linear or given")
    if record["kind"] == "given" and record.get("method") not in METHODS:
        raise ConfigError(f"{where}.method is {record.get('method')!r}; it must be one of {', '.join(METHODS)}")
    names = ("last", "season", "length", *(() if record["kind"] == "linear" else ("method_season",)))
    for name in names:
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LONGEST_PAST:
            raise ConfigError(f"{where}.{name} is {value!r}; it must be a number of steps")
    floor = record.get("floor")
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor < float("inf"):
        raise ConfigError(f"{where}.floor is {floor!r}; it must be zero or positive")
