"""What a run says of itself: where the time of a step goes, how fast each rank is, how much memory it took, a trace."""

from __future__ import annotations

import gzip
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity

Item = TypeVar("Item")

PROFILED = range(3, 6)  # steps that a trace shows; those before warm up
#: Where Linux is told to count a process's peak of memory anew.
PEAK = Path("/proc/self/clear_refs")


class Observer:
    """Measures what the parts of steps take, between two reports.

    On a GPU, work is timed where it runs, by events, so that nothing waits for a clock.

    Args:
        device: that computes.
        profile: record a trace of a few steps.
    """

    def __init__(self, device: torch.device, profile: bool = False) -> None:
        self._device = device
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profiler = torch.profiler.profile(activities=activities) if profile else None
        self._total = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._steps, self._rows = 0, 0
        self._since = time.perf_counter()
        self._trace: bytes | None = None

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time of the context as that of ``part``."""
        if self._device.type == "cuda" and part not in ("data", "checkpoint"):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((part, first, last))
        else:
            started = time.perf_counter()
            yield
            self._seconds[part] += time.perf_counter() - started

    def timed_iterator(self, items: Iterable[Item], part: str = "data") -> Iterator[Item]:
        """Yield the same items; the time that they are waited for counts as that of ``part``."""
        source = iter(items)
        while True:
            with self.timed(part):
                item = next(source, None)
            if item is None:
                return
            yield item

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count the context as one step, and trace it if it is among the first."""
        self._steps, self._total = self._steps + 1, self._total + 1
        if self._profiler is not None and self._total == PROFILED[0]:
            self._profiler.start()
        yield
        if self._profiler is not None and self._total == PROFILED[-1]:
            self._profiler.stop()
            self._trace = _exported(self._profiler)

    def count(self, rows: int) -> None:
        """Count so many rows that went forward and backward once."""
        self._rows += rows

    def summary(self) -> dict[str, Any]:
        """Sum up since the last call: seconds per step by part, this rank's rows per second, and the peak of its memory (GB).

        And once a trace, if there is one: Chrome's format, gzipped.
        """
        for part, first, last in self._events:
            last.synchronize()
            self._seconds[part] += first.elapsed_time(last) / 1000
        now, steps = time.perf_counter(), max(self._steps, 1)
        found: dict[str, Any] = {f"seconds_{part}": total / steps for part, total in self._seconds.items()}
        found |= {
            "rows_per_second": self._rows / (now - self._since),
            "peak_memory_gb": peak_memory(self._device) / 1e9,
        }
        if self._trace is not None:
            found["trace"], self._trace = self._trace, None
        self._seconds.clear()
        self._events.clear()
        self._steps = self._rows = 0
        self._since = now
        return found


def _exported(profiler: torch.profiler.profile) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return gzip.compress(path.read_bytes())


def peak_memory(device: torch.device) -> float:
    """Look up the most bytes that this process has held: on the GPU, or in all."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(largest if sys.platform == "darwin" else largest * 1024)


def forgets_peak() -> bool:
    """Whether :func:`forget_peak` can do that for this machine's memory."""
    return sys.platform == "linux" and os.access(PEAK, os.W_OK)


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak_memory` begin anew, in a process that goes on to another run; macOS cannot, nor some sandboxes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a kernel, or a container, without it
            PEAK.write_text("5")  # see proc(5)
