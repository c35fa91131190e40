"""Time series as forecasting takes them: one target per series, covariates, static features, all on one frequency."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.forecasting.clocks import NANOSECONDS, UTC
from proxscore.forecasting.places import Marks

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Borders:
    """Where a data set itself ends its training, validation and test targets: steps from the start, the same for all."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True, eq=False)
class Series:
    """One series of T steps.

    Attributes:
        id: its name, unique in its data set.
        start: period of the first step; its ``freq`` is the data set's.
        target: (T,) in the units of the data; NaN where it is missing.
        known: (K, T + E) covariates that are known in advance, here for E steps past the end of the target.
        past: (P, T) covariates that are known only once their step is over.
        static_categories: one code per category, from 0.
        static_real: (R,) numbers that hold for the whole series.
        marks: timestamps of its steps; None: the beginnings of their periods.
    """

    id: str
    start: pd.Period
    target: Values
    known: Values
    past: Values
    static_categories: tuple[int, ...] = ()
    static_real: Values = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    marks: Marks | None = None

    @classmethod
    def plain(cls, id: str, start: pd.Period, target: NDArray[Any], marks: Marks | None = None) -> Series:
        """A series without covariates and static features."""
        values = np.asarray(target, dtype=np.float32)
        none = np.empty((0, len(values)), dtype=np.float32)
        return cls(id, start, values, known=none, past=none, marks=marks)

    def timestamps(self, first: int, count: int) -> pd.DatetimeIndex:
        """Of ``count`` steps from step ``first`` on, which may lie after the end; in the zone of the series, if it has one."""
        if self.marks is None:
            return pd.period_range(self.start + first, periods=count).to_timestamp()
        return self.marks.at(np.arange(first, first + count))

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True, eq=False)
class SeriesData:
    """Series of one data set.

    Attributes:
        series: in the order of the data set.
        frequency: pandas offset alias that all share (``h``, ``30min``, ``ME``), as GluonTS's estimators take it.
        season: steps of the season that scaled errors (MASE, MSIS) compare with.
        known, past: names of the covariates, in the order of the rows of ``Series.known`` and ``Series.past``.
        categories: name of each static category -> its values, in the order of their codes.
        static_real: names of the static numbers.
        borders: the split that the data set brings; None: splits are made from the ends of the series.
        stamps: Arrow's type of the timestamps of its source, without a zone.
        details: what the source has to say for the record (files, gaps that were filled, ...).

    Raises:
        ConfigError: no series, two of one name, or one whose arrays do not fit the names or its target.
    """

    series: tuple[Series, ...]
    frequency: str
    season: int
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    static_real: tuple[str, ...] = ()
    borders: Borders | None = None
    stamps: Any = NANOSECONDS
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.series:
            raise ConfigError("the data set has no series; give at least one")
        seen: set[str] = set()
        for each in self.series:
            if each.id in seen:
                raise ConfigError(f"two series have the name {each.id!r}; names must be unique")
            seen.add(each.id)
            fits = (
                len(each) > 0
                and each.known.shape[0] == len(self.known)
                and each.known.shape[1] >= len(each)
                and each.past.shape == (len(self.past), len(each))
                and len(each.static_categories) == len(self.categories)
                and each.static_real.shape == (len(self.static_real),)
            )
            if not fits:
                raise ConfigError(
                    f"series {each.id!r}: target {each.target.shape}, known {each.known.shape}, past {each.past.shape}, "
                    f"{len(each.static_categories)} categories and {len(each.static_real)} static numbers do not fit the "
                    f"{len(self.known)}, {len(self.past)}, {len(self.categories)} and {len(self.static_real)} names"
                )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) number T of steps of each series."""
        return np.array([len(each) for each in self.series], dtype=np.int64)

    @property
    def zone(self) -> str | None:
        """Time zone of all timestamps; UTC where series have several, None where they have none."""
        zones = {None if each.marks is None else each.marks.zone for each in self.series}
        return zones.pop() if len(zones) == 1 else UTC

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of values of each static category."""
        return tuple(len(values) for values in self.categories.values())

    @property
    def record(self) -> dict[str, Any]:
        """What a run records of its data: names, sizes, what was filled in, and a SHA-256 of all values."""
        return {
            "series": len(self.series),
            "steps": int(self.lengths.sum()),
            "shortest": int(self.lengths.min()),
            "longest": int(self.lengths.max()),
            "missing": int(sum(np.isnan(each.target).sum() for each in self.series)),
            "frequency": self.frequency,
            "season": self.season,
            "known": list(self.known),
            "past": list(self.past),
            "static_categories": dict(zip(self.categories, self.cardinalities, strict=True)),
            "static_real": list(self.static_real),
            "sha256": self._fingerprint(),
            **self.details,
        }

    def to_gluonts(self, horizon: int = 0) -> list[dict[str, Any]]:
        """The series as GluonTS's transformations take them: one dictionary of ``FieldName`` keys each.

        Fields that the data set does not have are left out. Known covariates end ``horizon`` steps after the target:
        0 for training and for windows inside the series, the forecast's length for forecasts past the end.

        Raises:
            ConfigError: a series whose known covariates do not reach that far.
        """
        return [self._entry(each, horizon) for each in self.series]

    def _entry(self, each: Series, horizon: int) -> dict[str, Any]:
        from gluonts.dataset.field_names import FieldName  # an extra, which settings do without

        entry: dict[str, Any] = {FieldName.ITEM_ID: each.id, FieldName.START: each.start, FieldName.TARGET: each.target}
        if self.known:
            end = len(each) + horizon
            if each.known.shape[1] < end:
                raise ConfigError(
                    f"series {each.id!r}: known covariates {', '.join(self.known)} end {each.known.shape[1] - len(each)} "
                    f"steps after the target; a forecast of {horizon} steps needs them {horizon} steps after it"
                )
            entry[FieldName.FEAT_DYNAMIC_REAL] = each.known[:, :end]
        if self.past:
            entry[FieldName.PAST_FEAT_DYNAMIC_REAL] = each.past
        if self.categories:
            entry[FieldName.FEAT_STATIC_CAT] = np.array(each.static_categories, dtype=np.int64)
        if self.static_real:
            entry[FieldName.FEAT_STATIC_REAL] = each.static_real
        return entry

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for each in self.series:
            digest.update(f"{each.id}\0{each.start}\0{each.static_categories}\0".encode())
            for values in (each.target, each.known, each.past, each.static_real):
                digest.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
        return digest.hexdigest()
