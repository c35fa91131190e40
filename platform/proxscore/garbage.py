"""Python's search for garbage, in processes that import large libraries, and what they give back between two runs.

They make a million objects that stay. To look for garbage among them takes a quarter of the time that it takes to import
them, and, when the interpreter ends, seconds.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import sys
from contextlib import suppress


def look_less_often() -> None:
    """From now on, look for garbage less often, and at the end of this process not at all."""
    gc.set_threshold(50_000, 20, 50)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def give_back() -> None:
    """Give the system the memory that this process no longer uses, before it goes on to another run."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError):  # of a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)
