"""The time grid of a series: a frequency, the steps that timestamps stand on, and how a frequency is told from data.

A frequency is a pandas offset alias: ``s``, ``min``, ``h``, ``D``, ``W-SUN`` (any weekday), ``B``, ``ME``, ``QE-DEC``,
``YE-DEC`` (any month), and multiples as ``30min``. Seconds to weeks have steps of one length, and every timestamp must lie
a whole number of them after the first. Business days, months, quarters and years are calendar units: a timestamp stands
for the unit that holds it, so the first, the last or any other day of a month will do (``MS``, ``BME``, ``WOM-3FRI`` and
their like are months).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

from proxscore.config import ConfigError
from proxscore.forecasting.clocks import Times

Steps = NDArray[np.int64]

_SECOND = 1_000_000_000
_LENGTHS = {"s": _SECOND, "min": 60 * _SECOND, "h": 3600 * _SECOND, "D": 86400 * _SECOND, "W": 7 * 86400 * _SECOND}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_KNOWN = "s, min, h, D, B, W, ME, QE, YE, or a multiple of one as 30min"


@dataclass(frozen=True)
class Grid:
    """Steps of one frequency. Grids with the same steps have the same ``frequency`` (``MS`` and ``ME`` are one).

    Attributes:
        frequency: alias for offsets, as GluonTS's estimators take it.
        period: alias of the same grid for ``pandas.Period``, which has names of its own (``M`` for ``ME``).
        units: units of the calendar, or of time, per step.
        step: nanoseconds; None where they vary.
    """

    frequency: str
    period: str
    units: int
    step: int | None

    @classmethod
    def of(cls, frequency: str, source: str = "frequency") -> Grid:
        """The grid of a pandas offset alias.

        Raises:
            ConfigError: an alias that pandas does not know, or a frequency that has no such grid; ``source`` names it.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # older names ("H") are fine while pandas reads them
                offset = to_offset(frequency)
        except ValueError:
            offset = None
        base, _, anchor = offset.rule_code.partition("-") if offset is not None else ("", "", "")
        if base in {"WOM", "LWOM"}:
            base, anchor = "ME", ""
        base = base.removeprefix("B") if base in {"BMS", "BME", "BQS", "BQE", "BYS", "BYE"} else base
        if offset is None or offset.n < 1 or base not in {*_LENGTHS, "B", "MS", "ME", "QS", "QE", "YS", "YE"}:
            raise ConfigError(f"{source} {frequency!r} is unknown; use {_KNOWN}")
        if base in {"QS", "YS"}:  # named by their first month; their last one is eleven months on
            anchor = _MONTHS[_MONTHS.index(anchor) - 1]
        if base in {"QS", "QE"}:  # four names for each grid of quarters
            anchor = _MONTHS[9 + _MONTHS.index(anchor) % 3]
        base = {"MS": "ME", "QS": "QE", "YS": "YE"}.get(base, base)
        count = "" if offset.n == 1 else str(offset.n)
        suffix = f"-{anchor}" if anchor else ""
        step = offset.n * _LENGTHS[base] if base in _LENGTHS else None
        return cls(f"{count}{base}{suffix}", f"{count}{base.removesuffix('E')}{suffix}", offset.n, step)

    @property
    def unit(self) -> str:
        """Alias for ``pandas.Period`` of one unit: ``M``, ``B``, ``Q-DEC``."""
        return self.period.lstrip("0123456789")

    @property
    def days(self) -> bool:
        """Whether steps are days or longer, which follow the clock on the wall; 24 hours do not."""
        return self.unit[0] in "DBWMQY"

    def start(self, time: np.datetime64) -> pd.Period:
        """The period that holds a timestamp."""
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # pandas will drop periods of business days; GluonTS has them
            return pd.Period(pd.Timestamp(time), freq=self.period)

    def steps(self, times: Times) -> tuple[Steps, NDArray[np.bool_]]:
        """(N,) number of steps from the first of ``times`` (N,), rounded down, and whether each time lies on a step."""
        if self.step is not None:
            steps, rest = np.divmod((times - times[0]).astype(np.int64), self.step)
            return steps, rest == 0
        unit = self.unit
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            numbers = pd.DatetimeIndex(times).to_period(unit).asi8
        steps, rest = np.divmod(numbers - numbers[0], self.units)
        return steps, (rest == 0) & ((unit != "B") | np.is_busday(times.astype("datetime64[D]")))


def infer(times: Times) -> Grid | None:
    """The grid that ascending timestamps (N,) lie on, or None where they do not tell.

    ``pandas.infer_freq`` reads the longest stretch without a gap, that is, without a difference above 1.5 times the
    median one. Days without a weekend among ten or more are business days. Where pandas sees no pattern, but all stamps are on
    one day of the month, steps are months, quarters or years; else the most common difference is taken if it makes up half of
    all: the timestamps off that grid can then be named.
    """
    if len(times) < 3:
        return None
    differences = np.diff(times).astype(np.int64)
    ends = np.flatnonzero(differences > 1.5 * np.median(differences)) + 1
    first, last = max(pairwise([0, *ends.tolist(), len(times)]), key=lambda stretch: stretch[1] - stretch[0])
    name = pd.infer_freq(pd.DatetimeIndex(times[first:last])) if last - first >= 3 else None
    if name is None:
        name = _by_month(times) or _most_common(differences, times[0])
    if name == "D" and len(times) >= 10 and np.is_busday(times.astype("datetime64[D]")).all():
        name = "B"
    try:
        return Grid.of(name) if name is not None else None
    except ConfigError:  # a pattern that is no grid of ours, such as every second Tuesday of a month
        return None


def _by_month(times: Times) -> str | None:
    """Months, quarters or years, if all stamps are on one day of the month (its last where it is shorter), at one time."""
    days, months = times.astype("datetime64[D]"), times.astype("datetime64[M]")
    numbers, of_day = (days - months).astype(int), times - days
    last = (months + 1).astype("datetime64[D]") - np.timedelta64(1, "D")
    if (of_day != of_day[0]).any() or ((numbers != numbers.max()) & (days != last)).any():
        return None
    values, counts = np.unique(np.diff(months.astype(int)), return_counts=True)
    common, month = int(values[counts.argmax()]), _MONTHS[int(months[0].astype(int)) % 12]
    return {1: "ME", 3: f"QE-{month}", 12: f"YE-{month}"}.get(common, f"{common}ME" if common > 0 else None)


def _most_common(differences: Steps, first: np.datetime64) -> str | None:
    values, counts = np.unique(differences, return_counts=True)
    common = int(values[counts.argmax()])
    if 2 * counts.max() < len(differences):
        return None
    for base in ("W", "D", "h", "min", "s"):
        count, rest = divmod(common, _LENGTHS[base])
        if count and not rest:
            weekday = f"-{_DAYS[pd.Timestamp(first).weekday()]}" if base == "W" else ""
            return f"{count if count > 1 else ''}{base}{weekday}"
    return None
