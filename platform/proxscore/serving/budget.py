"""How many draws an answer has time for: from what answers took when the server started, and how fast it is now."""

from __future__ import annotations

import math
import threading

import numpy as np

WEIGHT = 0.1  # of the newest answer in the pace
LARGEST = 4.0  # ratio that one answer counts with: a pause of the machine says little about the next answer
MARGIN = 0.9  # of the budget


class LatencyBudget:
    """Knows what answers take, and how many draws fit into a time.

        seconds = pace (a(rows) + draws b(rows))

    a and b are measured for a few numbers of rows before the first request, and interpolated between them (beyond the last, in
    proportion). The pace is a running average of measured by expected seconds: more than 1 while others use the machine.

    Args:
        seconds: that an answer may take; none: there is no bound.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.pace = 1.0
        self._known: dict[int, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def measured(self, rows: int, draws: tuple[int, int], seconds: tuple[float, float]) -> None:
        """Answers for so many rows took so long, one with few draws and one with many."""
        each = max((seconds[1] - seconds[0]) / max(draws[1] - draws[0], 1), 1e-7)
        self._known[rows] = max(seconds[0] - draws[0] * each, 0.0), each

    def learn(self, rows: int, draws: int, seconds: float) -> None:
        """An answer took so long."""
        if not self._known:
            return
        fixed, each = self._costs(rows)
        ratio = min(seconds / max(fixed + draws * each, 1e-9), LARGEST)
        with self._lock:
            self.pace += WEIGHT * (ratio - self.pace)

    def draws(self, rows: int, wanted: int) -> int:
        """As many of the wanted draws as there is time for, one at least."""
        if self.seconds is None or wanted <= 1 or not self._known:
            return wanted
        fixed, each = self._costs(rows)
        fitting = math.floor((MARGIN * self.seconds / self.pace - fixed) / each)
        return max(1, min(wanted, fitting))

    def _costs(self, rows: int) -> tuple[float, float]:
        """a and b."""
        sizes = sorted(self._known)
        fixed, each = ([self._known[size][k] for size in sizes] for k in (0, 1))
        beyond = max(rows / sizes[-1], 1.0)
        return float(np.interp(rows, sizes, fixed)) * beyond, float(np.interp(rows, sizes, each)) * beyond
