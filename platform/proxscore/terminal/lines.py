"""Shows the lines of a job: progress is a bar in place on a terminal, and a line now and then in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

from proxscore.terminal.progress import Progress

PAUSE = 10.0  # seconds between two lines of progress in a log, at least
SHARE = 0.05  # of the time since the first one, between two lines: a day's log is as readable as an hour's


class Lines:
    """Prints each line that it is called with, at once; of lines of progress in a log only some.

    The last line of a run is always printed, and so is one that tells of trouble or of its end, or of steps that are done
    again. Of the processes that torchrun started the first alone prints. Within the
    context, what anyone else prints appears above the bar. It may be called from several threads.

    Args:
        console: where to; none: the standard output, as it is then.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._silent = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"
        self._in_place = self.console.is_terminal and not self.console.is_dumb_terminal
        self._lock = threading.RLock()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._first: dict[str, float] = {}
        self._last: dict[str, tuple[float, Progress]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._close()

    def __call__(self, line: str) -> None:
        if self._silent:
            return
        with self._lock:
            progress = Progress.parse(line)
            if progress is None:
                self._print(line)
            elif self._in_place:
                self._draw(progress)
            elif self._due(progress):
                self._print(line)

    def _print(self, line: str) -> None:
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.console.file, flush=True)

    def _due(self, progress: Progress) -> bool:
        """Whether a line of progress is to be printed into a log."""
        now = time.monotonic()
        pause = max(PAUSE, SHARE * (now - self._first.setdefault(progress.label, now)))
        when, last = self._last.get(progress.label, (now, None))
        news = last is None or progress.ended or progress.step < last.step or progress.troubled != last.troubled
        if news or now - when >= pause:
            self._last[progress.label] = now, progress
            return True
        return False

    def _draw(self, progress: Progress) -> None:
        if progress.ended:
            self._close()
            self._print(str(progress))
            return
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                # Takes the room that is left, and is cut at its end.
                TextColumn("{task.fields[about]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
                console=self.console,
                expand=True,
                transient=True,
                refresh_per_second=2,
            )
            self._bars.start()
        about = " · ".join(progress.about)
        if progress.label not in self._tasks:
            method = progress.label.rpartition("-")[2]  # a label ends in it; what is before takes half a line
            self._tasks[progress.label] = self._bars.add_task(
                method, total=progress.total, completed=progress.step, about=about
            )
        self._bars.update(self._tasks[progress.label], completed=progress.step, about=about)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}
