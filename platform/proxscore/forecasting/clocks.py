"""Timestamps as they came: the instants, what the clock of their own zone showed, and the zone.

Days and longer follow the clock on the wall: a day in Berlin has 23 hours at one switch and 25 at the other. Hours and
shorter follow the instants. Where the clock jumps over a time, the time stands for the instant of the jump; where a time
comes twice, for the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

Times = NDArray[np.datetime64]  # of nanoseconds
UTC = "UTC"
NANOSECONDS = pa.timestamp("ns")

_HOUR = np.timedelta64(3600, "s")


@dataclass(frozen=True, eq=False)
class Stamps:
    """Timestamps of N rows.

    Attributes:
        instants: (N,) in UTC; of stamps without a zone, what they show.
        shown: (N,) what the clock of each row's zone shows.
        zones: names that occur, ``Europe/Berlin`` or ``+01:00``; none where the stamps have no zone.
        codes: (N,) index of each row's zone.
        kind: Arrow's type of a time as it came, without a zone: a date, or a timestamp of some unit.
    """

    instants: Times
    shown: Times
    zones: tuple[str, ...]
    codes: NDArray[np.int64]
    kind: Any = NANOSECONDS

    @classmethod
    def of(cls, instants: Times, zone: str | None = None, kind: Any = NANOSECONDS) -> Self:
        """All in one zone, or in none."""
        shown = instants if zone is None else convert(instants, zone)
        return cls(instants, shown, () if zone is None else (zone,), np.zeros(len(instants), np.int64), kind)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Rows of several files, which all have zones, or none."""
        zones = tuple(dict.fromkeys(zone for part in parts for zone in part.zones))
        codes = [np.array([zones.index(zone) for zone in part.zones] or [0])[part.codes] for part in parts]
        kinds = {part.kind for part in parts}
        return cls(
            np.concatenate([part.instants for part in parts]),
            np.concatenate([part.shown for part in parts]),
            zones,
            np.concatenate(codes).astype(np.int64),
            kinds.pop() if len(kinds) == 1 else NANOSECONDS,
        )

    def zone(self, rows: NDArray[np.int64]) -> str | None:
        """The one zone of some rows; UTC where they have several, none where they have none."""
        if not self.zones:
            return None
        codes = np.unique(self.codes[rows])
        return self.zones[int(codes[0])] if len(codes) == 1 else UTC


def known(zone: str) -> bool:
    """Whether there is such a zone."""
    try:
        pd.DatetimeIndex([]).tz_localize(zone)
    except Exception:  # each library of zones has its own error
        return False
    return True


def convert(instants: Times, zone: str) -> Times:
    """Convert instants to the times that a zone's clock shows."""
    return pd.DatetimeIndex(instants, tz=UTC).tz_convert(zone).tz_localize(None).to_numpy().astype("datetime64[ns]")


def localise(shown: Times, zone: str) -> Times:
    """The instants at which a zone's clock shows times, by the rules of the module."""
    index = pd.DatetimeIndex(shown).tz_localize(
        zone, ambiguous=np.ones(len(shown), dtype=bool), nonexistent="shift_forward"
    )
    return index.tz_convert(UTC).tz_localize(None).to_numpy().astype("datetime64[ns]")


def nominal(shown: Times, instants: Times, zone: str) -> Times:
    """The times that stamps of one series stand for: where its usual time of the day was jumped over, that time.

    A day that begins at midnight begins at 1:00 where midnight is jumped over; its stamp is moved to the end of the jump
    (pandas), or by the length of the jump (Python).
    """
    earlier = instants - _HOUR
    jump = (shown - instants) - (convert(earlier, zone) - earlier)
    rows = np.flatnonzero(jump > np.timedelta64(0))
    if not rows.size:
        return shown
    times, counts = np.unique(shown - shown.astype("datetime64[D]"), return_counts=True)
    wanted = shown[rows].astype("datetime64[D]") + times[counts.argmax()]
    moved = localise(wanted, zone)
    skipped = convert(moved, zone) != wanted
    stands = skipped & ((moved == instants[rows]) | (shown[rows] - wanted == jump[rows]))
    result = shown.copy()
    result[rows[stands]] = wanted[stands]
    return result
