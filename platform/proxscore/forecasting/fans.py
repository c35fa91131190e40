"""Fan charts as SVG of a page: history, what happened where it is known, the median, and intervals, of one series each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxscore.calibration.quantiles import central
from proxscore.forecasting.prediction import SeriesPrediction

LEVELS = (0.9, 0.8, 0.5)  # of the bands, the widest first
HISTORY = 400  # steps before the origin that are shown at most
WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 62, 8, 8, 22  # margins

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Fan:
    """One series and its forecast.

    Attributes:
        name: of the series.
        history, targets: (T,) before the origin and (H,) after it; NaN where not known.
        median: (H,).
        bands: lower and upper ends (H,) by level of ``LEVELS``.
        bare: whether they are the model's own, because the series is too short for calibrated ones.
        unlike: whether the history is unlike those of training.
        first, origin, last: timestamps of the first step of the history, of the forecast, and of its last one.
    """

    name: str
    history: Values
    targets: Values
    median: Values
    bands: dict[float, tuple[Values, Values]]
    bare: bool
    unlike: bool
    first: pd.Timestamp
    origin: pd.Timestamp
    last: pd.Timestamp


def fans(prediction: SeriesPrediction, count: int) -> Iterator[Fan]:
    """The last forecast of each of the first ``count`` series; bands are calibrated where their level is."""
    targets = prediction.predictive.targets
    rows = {int(number): row for row, number in enumerate(targets[:, 2, 0].long().tolist())}
    part = prediction.part(list(rows.values())[:count])
    calibrated = {each.level: (each.lower, each.upper) for each in part.calibrated(LEVELS)}
    median, *ends = part.quantiles([0.5, *(p for level in LEVELS for p in central(level))]).double()
    own = {level: (ends[2 * k], ends[2 * k + 1]) for k, level in enumerate(LEVELS)}
    for row, target in enumerate(part.predictive.targets):
        series, origin = part.series.series[int(target[2, 0])], int(target[3, 0])
        begin = max(0, origin - min(HISTORY, max(4 * len(target[0]), 100)))
        stamps = series.timestamps(begin, origin - begin + len(target[0]))
        bare = any(bool(lower[row].isnan().any()) for lower, _ in calibrated.values())
        shown = own if bare else own | calibrated
        yield Fan(
            series.id,
            series.target[begin:origin].astype(np.float64),
            np.where(target[1].numpy() > 0, target[0].double().numpy(), math.nan),
            median[row].numpy(),
            {level: (lower[row].numpy(), upper[row].numpy()) for level, (lower, upper) in shown.items()},
            bare,
            part.unlike is not None and bool(part.unlike[row]),
            stamps[0],
            stamps[origin - begin],
            stamps[-1],
        )


def svg(fan: Fan) -> str:
    """The chart, without any text that comes from the data but numbers and timestamps."""
    past, ahead = len(fan.history), len(fan.median)
    known = np.concatenate([fan.history, fan.targets, *(end for pair in fan.bands.values() for end in pair)])
    low, high = float(np.nanmin(known)), float(np.nanmax(known))
    room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - room, high + room

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(past + ahead - 1, 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    def points(values: Values, first: int) -> list[str]:
        return [f"{x(first + k):.1f},{y(v):.1f}" for k, v in enumerate(values) if not math.isnan(v)]

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for value in ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 5}" y="{y(value) + 3.5:.1f}">{number(value)}</text>')
    for shade, level in enumerate(LEVELS):
        lower, upper = fan.bands[level]
        outline = [*points(lower, past), *reversed(points(upper, past))]
        parts.append(f'<polygon class="band{shade}" points="{" ".join(outline)}"/>')
    parts.append(f'<polyline class="median" points="{" ".join(points(fan.median, past))}"/>')
    for values, first in ((fan.history, 0), (fan.targets, past)):
        for run, start in runs(values):
            parts.append(f'<polyline class="seen" points="{" ".join(points(run, first + start))}"/>')
    if past:
        parts.append(f'<path class="origin" d="M{x(past - 0.5):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for step, stamp, place in ((0, fan.first, "start"), (past, fan.origin, "mid"), (past + ahead - 1, fan.last, "end")):
        if place == "mid" and not 0.25 < step / max(past + ahead - 1, 1) < 0.8:
            continue
        parts.append(f'<text class="{place}" x="{x(step):.1f}" y="{HEIGHT - 6}">{dated(stamp)}</text>')
    return "".join(parts) + "</svg>"


def runs(values: Values) -> Iterator[tuple[Values, int]]:
    """Stretches without a missing value, and where each begins; one of a single value is drawn as a dot."""
    known = np.flatnonzero(~np.isnan(values))
    for part in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if len(part):
            one = values[part]
            yield (one if len(one) > 1 else np.repeat(one, 2)), int(part[0])


def ticks(low: float, high: float, count: int = 4) -> Sequence[float]:
    """Round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= count)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def number(value: float) -> str:
    """Short, for an axis."""
    return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.2e}"


def dated(stamp: pd.Timestamp) -> str:
    """A timestamp, without a time of the day where that is midnight."""
    return f"{stamp:%Y-%m-%d}" if stamp == stamp.normalize() else f"{stamp:%Y-%m-%d %H:%M}"
