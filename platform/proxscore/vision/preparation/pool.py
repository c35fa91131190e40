"""Work on pieces of a data set by several processes, its results in order, with a line of progress."""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NoReturn, TypeVar

from tqdm import tqdm

Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 2  # tasks of each process that wait


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """The result of each task, in the order of the tasks. Few are under way at a time, so that memory holds few.

    Args:
        work: a function that has a name, as processes are sent it.
        workers: processes; with one, this one does the work.
    """
    if workers == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(workers, initializer=_leave_interrupts_to_the_parent) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def progress(total: int, what: str) -> tqdm[NoReturn]:
    """A line on stderr with count, rate and time left; in a log it is renewed every ten seconds."""
    seldom = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit=" images", mininterval=seldom, file=sys.stderr)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
