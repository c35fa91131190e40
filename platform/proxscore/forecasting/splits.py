"""Which forecasts train, validate and test: rolling origins in each series.

An origin o is the index of a forecast's first step: with horizon H its targets are the steps o..o+H-1, its past the steps
before o. Validation and test are lists of origins; training windows lie wholly before ``train_end``. No target is in two
parts: in every series

    targets of training < train_end <= targets of validation < first origin of test <= targets of test.

The past of a window may hold steps that were targets of an earlier part: they are known when the forecast is made.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from proxscore.calibration.seasonal_error import seasonal_error
from proxscore.config import ConfigError
from proxscore.forecasting.series import SeriesData

Origins = NDArray[np.int64]

USUAL_WINDOWS = 99  # calibrated intervals of 50, 80, 90 and 95 % have their level by them on average, give or take .03
MOST_WINDOWS = 2_000  # of all series, unless asked for: each epoch ends with a look at those of validation
_SHARE = 6  # either part takes at most one of so many of the shortest series
_LARGEST_EXPONENT = 15  # of a unit of ten: metrics square errors, in float32


@dataclass(frozen=True, eq=False)
class Split:
    """The split of one series: ``train_end``, and the ascending origins of its validation and test windows.

    ``scale_end`` is the end of the past that the scale of MASE is taken from, where that is not the training part.
    """

    train_end: int
    validation: Origins
    test: Origins
    scale_end: int | None = None


def split_series(
    data: SeriesData,
    horizon: int,
    *,
    context: int = 1,
    test_windows: int = 1,
    validation_windows: int = 1,
    stride: int | None = None,
) -> list[Split]:
    """A split for each series: at the data set's own borders where it has them, else back from the end of the series.

    From the end: the last test target is the series' last step; test origins lie ``stride`` apart before it, and so do
    validation origins, the last of which ends where the first test window begins.
    At borders: every window whose targets are in the part, or, with a stride, the first of each ``stride`` of them.

    Args:
        data: the series.
        horizon: H, steps of a forecast.
        context: steps of past that a training window must have; less than a network's context where its windows may
            be padded.
        test_windows, validation_windows: origins of each series, without borders.
        stride: steps between origins; None: H, or 1 at borders.

    Raises:
        ConfigError: a series, or a part of it, is too short; its name, its length and what is needed are given.
    """
    if data.borders is not None:
        splits = [_at_borders(data, horizon, stride or 1)] * len(data.series)
    else:
        splits = [
            _from_end(len(each), horizon, test_windows, validation_windows, stride or horizon) for each in data.series
        ]
    for each, split in zip(data.series, splits, strict=True):
        if split.train_end < context + horizon:
            refuse(each.id, len(each), len(each) - split.train_end, context, horizon, data.borders is not None)
    return splits


def usual_windows(lengths: Sequence[int], horizon: int, stride: int, context: int = 1) -> int:
    """Windows of validation, and of test, in each series where nobody says how many: 99, or as many as ``MOST_WINDOWS`` in all,
    a sixth of the shortest series, and what training needs of it leave; one at least.

    Args:
        lengths: steps of each series.
        horizon: H, steps of a forecast.
        stride: steps between origins.
        context: steps of past that a training window must have.
    """
    shortest = min(lengths)
    room = min(shortest / _SHARE, (shortest - context - horizon) / 2)
    return max(1, min(USUAL_WINDOWS, MOST_WINDOWS // len(lengths), int((room - horizon) // stride) + 1))


def record(splits: list[Split], horizon: int) -> dict[str, Any]:
    """What a run records of its splits: numbers of windows, and a SHA-256 of every ``train_end`` and origin."""
    digest = hashlib.sha256()
    for split in splits:
        for numbers in ([split.train_end], split.validation, split.test):
            digest.update(np.asarray([len(numbers), *numbers], dtype="<i8").tobytes())
    return {
        "horizon": horizon,
        "training_steps": sum(split.train_end for split in splits),
        "validation_windows": sum(len(split.validation) for split in splits),
        "test_windows": sum(len(split.test) for split in splits),
        "sha256": digest.hexdigest(),
    }


def season_errors(data: SeriesData, splits: list[Split]) -> NDArray[np.float32]:
    """(N,) mean |y_t - y_{t-m}| over the training part (or up to ``scale_end``) of each series, the scale of MASE and MSIS,
    in its units.

    m is the season, or 1 where that part is no longer than it; pairs with a missing value count nowhere. A
    series that is constant, or has no pair, has no scale: NaN, so that its scaled errors are NaN too, not infinite.
    """
    pairs = zip(data.series, splits, strict=True)
    parts = [torch.from_numpy(each.target[: split.scale_end or split.train_end]) for each, split in pairs]
    errors = [seasonal_error(part, data.season) for part in parts]
    found = torch.stack(errors).numpy()
    return np.where(found > 0, found, np.nan).astype(np.float32)


def scale_floor(data: SeriesData, splits: list[Split], fraction: float) -> float:
    """``fraction`` of the least mean |y_t - y_(t-1)| of the series over their training parts; 0 if all are constant."""
    pairs = zip(data.series, splits, strict=True)
    steps = np.array([seasonal_error(torch.from_numpy(each.target[: split.train_end]), 1) for each, split in pairs])
    moving = steps[steps > 0]
    return fraction * float(moving.min()) if len(moving) else 0.0


def unit(data: SeriesData, splits: list[Split]) -> float:
    """The power of ten nearest to the standard deviation of the calmest series over its training part; 1 if all are constant.

    Raises:
        ConfigError: it is so small or large that squares would leave the range of float32.
    """
    spreads = {}
    for each, split in zip(data.series, splits, strict=True):
        observed = each.target[: split.train_end].astype(np.float64)
        observed = observed[~np.isnan(observed)]
        if len(observed) and np.ptp(observed) > 0:
            spreads[each.id] = float(observed.std())
    if not spreads:
        return 1.0
    calmest = min(spreads, key=lambda name: spreads[name])
    exponent = round(math.log10(spreads[calmest]))
    if abs(exponent) > _LARGEST_EXPONENT:
        raise ConfigError(
            f"series {calmest!r}: its target has a standard deviation of {spreads[calmest]:.2g}; give the targets in a unit "
            f"that makes it between 1e-{_LARGEST_EXPONENT} and 1e{_LARGEST_EXPONENT}"
        )
    return 10.0**exponent


def repeated(seasons: Sequence[int], ends: Sequence[int], horizon: int) -> list[int]:
    """The seasons, ascending, that most training parts of so many steps show three times, beside a horizon."""
    typical = float(np.median(np.asarray(ends)))
    return sorted(season for season in set(seasons) if season > 1 and 3 * season + horizon <= typical)


def default_context(seasons: Sequence[int], ends: Sequence[int], horizon: int) -> int:
    """Steps to look back to: the longest season, and twice the longer of horizon and shortest season; not beyond any series."""
    wanted = (max(seasons, default=0)) + 2 * max([horizon, *seasons[:1]])
    return max(min(wanted, max(ends) - horizon), horizon, 1)


def _from_end(length: int, horizon: int, test_windows: int, validation_windows: int, stride: int) -> Split:
    test = length - horizon - stride * np.arange(test_windows, dtype=np.int64)[::-1]
    validation = test[0] - horizon - stride * np.arange(validation_windows, dtype=np.int64)[::-1]
    return Split(int(validation[0]), validation, test)


def _at_borders(data: SeriesData, horizon: int, stride: int) -> Split:
    borders = data.borders
    assert borders is not None
    parts = {"validation": (borders.train, borders.validation), "test": (borders.validation, borders.test)}
    origins = {}
    for part, (first, end) in parts.items():
        origins[part] = np.arange(first, end - horizon + 1, stride, dtype=np.int64)
        if not len(origins[part]):
            raise ConfigError(
                f"series {data.series[0].id!r}: its {part} part has {end - first} steps, and a horizon of {horizon} needs "
                f"{horizon}; use a shorter horizon"
            )
    return Split(borders.train, origins["validation"], origins["test"])


def refuse(name: str, length: int, held_out: int, context: int, horizon: int, own: bool) -> NoReturn:
    """Refuse a series that is too short.

    Raises:
        ConfigError: always; what the series has and what it needs.
    """
    needed = held_out + context + horizon
    hint = "a shorter horizon or context" if own else "a shorter horizon or context, fewer windows or a smaller stride"
    raise ConfigError(
        f"series {name!r} has {length} steps and needs {needed}: {held_out} for validation and test, and {context} of past "
        f"with a horizon of {horizon} to train on; use {hint}, or leave the series out"
    )
