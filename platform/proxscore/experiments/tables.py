"""Numbers over seeds, and tables in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

NONE = "–"


def average(values: Sequence[float], digits: int = 4) -> str:
    """``mean ± standard error`` of the mean over seeds, s / sqrt(n) with s from n - 1 degrees of freedom.

    The mean alone where the values are equal, one, or not finite; a dash where there are none.
    """
    if not values:
        return NONE
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(set(values)) == 1 or not all(map(math.isfinite, values)):
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table.

    Args:
        texts: columns at the beginning that hold text; the others hold numbers, which are aligned at the right.
    """
    rule = "|" + "---|" * texts + "---:|" * (len(header) - texts)
    return "\n".join(["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])
