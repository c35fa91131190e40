"""Which of many runs is the best: by a metric of validation data, and of those alone that have a finite value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key")


def cost(value: float, maximise: bool = False) -> float:
    """A metric as something to be small; what is not finite is infinite, and comes last."""
    if not math.isfinite(value):
        return math.inf
    return -value if maximise else value


def best(values: Mapping[Key, float], maximise: bool = False) -> Key | None:
    """The key of the best finite value, of equal ones the first; none where no value is finite."""
    costs = {key: cost(value, maximise) for key, value in values.items()}
    found = min(costs, key=lambda key: costs[key], default=None)
    return None if found is None or math.isinf(costs[found]) else found
