"""The best of the methods that need no training, which a trained network is shown beside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class BestBaseline:
    """What the best of the simple methods does on the same windows.

    Attributes:
        name: of the one with the least CRPS of the validation split; empty: none could be judged.
        validation: that CRPS of every one, by name, the best first.
        test: its metrics of the test split.
        notes: what was left out or failed, in lines.
    """

    name: str
    validation: dict[str, float]
    test: dict[str, float]
    notes: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, found: Mapping[str, Any] | None) -> BestBaseline | None:
        """As :meth:`to_json` gives it; none where there is none."""
        return None if found is None else cls(**{**found, "notes": tuple(found["notes"])})

    def to_json(self) -> dict[str, Any]:
        """For the results of a run."""
        return asdict(self) | {"notes": list(self.notes)}

    def beside(self, metrics: Mapping[str, float]) -> str | None:
        """Whether a network is behind it, in a line, by CRPS of the test split; none: one of the two has none."""
        own, other = metrics.get("crps", math.nan), self.test.get("crps", math.nan)
        if not self.name or math.isnan(own) or math.isnan(other):
            return None
        return f"{'behind' if own > other else 'ahead of'} {self.name}: CRPS {_short(own)} against {_short(other)}"


def _short(value: float) -> str:
    """Four digits, or all before the point."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    digits = 3 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 12)}f}"
