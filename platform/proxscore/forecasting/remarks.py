"""What is to be said of forecasts of many series: how many have a past that tells little, or intervals of other series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Remarks:
    """Of some series; those of more are added up.

    Attributes:
        series: how many there are, or windows of them.
        flat: how many have a context that does not vary, or is zero, and the name of the first.
        short: how many are shorter than the context, likewise.
        pooled: how many have no thresholds of their own, where groups of series have.
    """

    series: int = 0
    flat: tuple[int, str] = (0, "")
    short: tuple[int, str] = (0, "")
    pooled: int = 0

    @classmethod
    def of(cls, series: int, flat: Sequence[str], short: Sequence[str], pooled: int) -> Self:
        """Of so many series, with the names of those that are meant."""
        counts = [(len(names), names[0] if names else "") for names in (flat, short)]
        return cls(series, counts[0], counts[1], pooled)

    def __add__(self, other: Remarks) -> Remarks:
        """Of both together."""
        flat, short = (
            (own[0] + its[0], own[1] if own[0] else its[1])
            for own, its in ((self.flat, other.flat), (self.short, other.short))
        )
        return Remarks(self.series + other.series, flat, short, self.pooled + other.pooled)

    def lines(self, *, floor: float, context: int, groups: str | None) -> list[str]:
        """In words.

        Args:
            floor: the least scale of a forecast.
            context: steps that the network looks back to.
            groups: ``task.conformal.groups``.
        """
        found = []
        (flat, first_flat), (short, first_short) = self.flat, self.short
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
        if self.pooled:
            found.append(
                f"{self.pooled:,} of {self.series:,} forecasts are of series without thresholds of their own ({groups}): their "
                "intervals are calibrated by all series together"
            )
        return found
