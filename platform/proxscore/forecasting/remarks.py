"""What is to be said of forecasts of many series: how many have a past that tells little, or intervals of other series."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True)
class Remarks:
    """Of some series; those of more are added up.

    Attributes:
        series: how many there are, or windows of them.
        flat: how many have a context that does not vary, or is zero, and the name of the first.
        short: how many are shorter than the context, likewise.
        unlike: how many have a past unlike those of training, likewise; those that are flat or short are not counted again.
        pooled: how many have no thresholds of their own, where groups of series have.
        bare: how many have no calibrated interval, because no validation window had so short a past.
        excluded: how many series have values that the likelihood makes impossible, and the first of them.
    """

    series: int = 0
    flat: tuple[int, str] = (0, "")
    short: tuple[int, str] = (0, "")
    unlike: tuple[int, str] = (0, "")
    pooled: int = 0
    bare: int = 0
    excluded: tuple[int, str] = (0, "")

    @classmethod
    def of(
        cls,
        series: int,
        flat: Sequence[str],
        short: Sequence[str],
        unlike: Sequence[str],
        pooled: int,
        bare: int,
        excluded: Sequence[str] = (),
    ) -> Self:
        """Of so many series, with the names of those that are meant."""
        counts = [(len(names), names[0] if names else "") for names in (flat, short, unlike, excluded)]
        return cls(series, counts[0], counts[1], counts[2], pooled, bare, counts[3])

    def __add__(self, other: Remarks) -> Remarks:
        """Of both together."""
        flat, short, unlike, excluded = (
            (own[0] + its[0], own[1] if own[0] else its[1])
            for own, its in (
                (self.flat, other.flat),
                (self.short, other.short),
                (self.unlike, other.unlike),
                (self.excluded, other.excluded),
            )
        )
        pooled, bare = self.pooled + other.pooled, self.bare + other.bare
        return Remarks(self.series + other.series, flat, short, unlike, pooled, bare, excluded)

    def lines(self, *, floor: float, context: int, groups: str | None, support: str = "") -> list[str]:
        """In words.

        Args:
            floor: the least scale of a forecast.
            context: steps that the network looks back to.
            groups: ``task.conformal.groups``.
            support: values that the likelihood allows, in words.
        """
        found = []
        (flat, first_flat), (short, first_short), (unlike, first_unlike) = self.flat, self.short, self.unlike
        if flat:
            found.append(
                f"{flat:,} of {self.series:,} contexts do not vary (the first: {first_flat}): their forecasts have the least "
                f"scale, {floor:.4g}"
            )
        if short:
            found.append(
                f"{short:,} of {self.series:,} series (the first: {first_short}) are shorter than the context of {context} "
                "steps: zeros stand before them"
            )
        if unlike:
            more = "more " if flat or short else ""
            found.append(
                f"{unlike:,} {more}of {self.series:,} forecasts (the first: {first_unlike}) go on from a past unlike any of "
                "training: their uncertainty may be too small (unlike_training)"
            )
        if self.excluded[0]:
            found.append(
                f"{self.excluded[0]:,} series have values that their likelihood excludes (the first: {self.excluded[1]}): "
                f"forecasts are of {support} alone, which is wrong if such values come again"
            )
        if self.bare:
            found.append(
                f"{self.bare:,} of {self.series:,} forecasts have no calibrated intervals: no validation window "
                "had so short a past"
            )
        if self.pooled:
            found.append(
                f"{self.pooled:,} of {self.series:,} forecasts are of series without thresholds of their own ({groups}): their "
                "intervals are calibrated by all series together"
            )
        return found


@dataclass(eq=False)
class Gathered(logging.Filter):
    """Warnings of the reading and forecasting of many batches, each of which would say them again."""

    found: dict[str, dict[str, int]] = field(default_factory=dict)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record's text, and how often it came."""
        texts = self.found.setdefault(str(record.msg), {})
        texts[record.getMessage()] = texts.get(record.getMessage(), 0) + 1
        return False

    def lines(self) -> list[str]:
        """Each kind of warning once."""
        made = []
        for texts in self.found.values():
            first, *others = texts
            made.append(f"{first}; and the like in {len(others):,} more batches of series" if others else first)
        return made


@contextmanager
def gathered() -> Iterator[Gathered]:
    """Within the context, warnings of this package are gathered."""
    held = Gathered()
    names = [name for name in sys.modules if name.startswith("proxscore.forecasting")]
    for name in names:
        logging.getLogger(name).addFilter(held)
    try:
        yield held
    finally:
        for name in names:
            logging.getLogger(name).removeFilter(held)
