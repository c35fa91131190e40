"""How far many runs are: the rate, and the time that is left, as people say it."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def pace(done: int, left: float, seconds: float, limit: float | None = None) -> str:
    """What so many runs that ended in so many seconds say of those that are left; nothing before the first has ended.

    Args:
        left: runs to go.
        limit: seconds after which no other begins.
    """
    if not done:
        return ""
    rate = 3600 * done / max(seconds, 1e-6)
    rest = left * seconds / done
    rest = rest if limit is None else min(rest, max(limit, 0))
    return f" · {rate:{'.1f' if rate < 100 else ',.0f'}} per hour · {duration(rest)} left"
