"""How many draws an answer has time for: chosen from what earlier answers took."""

from __future__ import annotations

import math
import threading

WEIGHT = 0.2  # of the newest measurement
MARGIN = 0.8  # of the budget that draws may take; the rest is for reading the request and writing the answer


class LatencyBudget:
    """Learns what a draw takes for batches of each size, and how many fit into a time.

    The time of a batch is taken to grow with its draws: seconds = draws * c(rows), where c is a running average for batches of
    1, 2, 3-4, 5-8, ... rows; of a size that has not been seen, that of the next smaller one in proportion to its rows.

    Args:
        seconds: that an answer may take; none: there is no bound.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._each: dict[int, float] = {}
        self._lock = threading.Lock()

    def learn(self, rows: int, draws: int, seconds: float) -> None:
        """A batch took so long."""
        size, each = _size(rows), seconds / max(draws, 1)
        with self._lock:
            held = self._each.get(size)
            self._each[size] = each if held is None else held + WEIGHT * (each - held)

    def draws(self, rows: int, wanted: int) -> int:
        """As many of the wanted draws as there is time for, one at least."""
        if self.seconds is None or wanted <= 1:
            return wanted
        each = self._seconds_of_a_draw(rows)
        if each is None:
            return wanted
        return max(1, min(wanted, math.floor(MARGIN * self.seconds / max(each, 1e-9))))

    def _seconds_of_a_draw(self, rows: int) -> float | None:
        size = _size(rows)
        with self._lock:
            smaller = [known for known in self._each if known <= size]
            if not smaller:
                return min(self._each.values(), default=None)
            return self._each[max(smaller)] * 2 ** (size - max(smaller))


def _size(rows: int) -> int:
    return math.ceil(math.log2(max(rows, 1)))
