"""The boundary of every job: whatever is raised inside becomes one line, and an exit status that is not zero.

    def main(arguments=None) -> int:
        options = parser.parse_intermixed_args(arguments)
        return job.run(lambda: train(options), "train", interrupted="the run is marked KILLED")

A :class:`ConfigError` is its own line. Of anything else the line tells what it is, the file that it concerns, and the log file
with the traceback.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import UnsupportedOperation

from proxscore import garbage
from proxscore.config import ConfigError, DivergedError, masked

FAILED, REFUSED = 1, 2
INTERRUPTED = 130
LONGEST = 600  # characters of a line
BEHIND_THE_FIRST = 5.0  # seconds that other processes of torchrun's stay: it ends all at once when one has ended

garbage.look_less_often()  # here: jobs import torch, Ray and MLflow when they begin


def run(work: Callable[[], int], name: str, *, interrupted: str = "nothing was left") -> int:
    """Do a job's work.

    Args:
        work: returns the exit status.
        name: of the job, for the name of the log.
        interrupted: what is so after Ctrl-C or SIGTERM.

    Returns:
        What ``work`` returned; 2 after an error, 1 of a run that diverged, with one line on stderr; 130 after an interruption.
    """
    try:
        status = work()
        sys.stdout.flush()
        return status
    except ConfigError as error:
        _say(f"error: {one_line(error)}")
    except DivergedError as error:
        _say(f"error: {one_line(error)}")
        return FAILED
    except BrokenPipeError:  # whoever read the output has gone: nobody is left to tell, and the exit flushes once more
        with suppress(UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        _say(f"error: {_told(error)}; {_logged(error, name)}", always=True)
    except (KeyboardInterrupt, SystemExit):
        _say(f"interrupted: {interrupted}", always=True)
        return INTERRUPTED
    return REFUSED


def one_line(error: BaseException) -> str:
    """What an error says, in one line that is not endless, without passwords."""
    text = masked(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _told(error: Exception) -> str:
    """An error that nobody has put into words, with the file or the amount of memory that it concerns."""
    if isinstance(error, OSError) and error.strerror:
        file = f"{error.filename}: " if error.filename is not None else ""
        return one_line(OSError(f"{file}{error.strerror}"))
    if isinstance(error, MemoryError):
        return f"out of memory: {one_line(error)}"
    if isinstance(error, (RuntimeError, FloatingPointError)) and type(error).__module__ == "builtins":
        return one_line(error)  # of our own loop, and of torch: a sentence
    return f"{type(error).__name__}: {one_line(error)}"


def _logged(error: Exception, name: str) -> str:
    """Write the traceback into a file; where it is."""
    try:
        handle, path = tempfile.mkstemp(prefix=f"proxscore-{name}-", suffix=".log")
        with os.fdopen(handle, "w", errors="backslashreplace") as log:
            log.write(masked("".join(traceback.format_exception(error))))
    except OSError as reason:
        return f"its traceback could not be written: {reason.strerror}"
    return f"traceback: {path}"


def _say(line: str, *, always: bool = False) -> None:
    """On stderr; of processes that torchrun started the first alone, as all of them find the same, and before others end."""
    if not always and os.environ.get("TORCHELASTIC_RUN_ID") is not None and os.environ.get("RANK", "0") != "0":
        time.sleep(BEHIND_THE_FIRST)
        return
    encoding = sys.stderr.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)
