"""What a report says while it works: the part at hand, the rate, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

PAUSE = 5.0  # seconds between two lines
Item = TypeVar("Item")


class Progress:
    """Counts images through the whole report.

    Args:
        total: images that there are to go through the network, over all processes.
        world: number of processes that share them; this one counts its own and takes the others to be as far.
        show: shows a line; none in processes that say nothing.
    """

    def __init__(self, total: int, world: int, show: Callable[[str], None] | None) -> None:
        self.total, self.world, self.done, self._show = total, world, 0, show
        self._start = self._last = time.monotonic()

    def part(self, name: str, batches: Iterable[Item], rows: Callable[[Item], int]) -> Iterator[Item]:
        """Pass batches on, and count their rows."""
        for batch in batches:
            yield batch
            self.done += self.world * rows(batch)
            now = time.monotonic()
            if self._show is not None and now - self._last >= PAUSE:
                self._last = now
                self._show(self.line(name, now - self._start))

    def line(self, name: str, seconds: float) -> str:
        """One line, after so many seconds."""
        rate = self.done / max(seconds, 1e-9)
        left = max(self.total - self.done, 0) / max(rate, 1e-9)
        share = min(self.done / max(self.total, 1), 1)
        return f"report     {share:4.0%}  {name}: {rate:,.0f} images/s, {_duration(left)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
