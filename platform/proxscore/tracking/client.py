"""MLflow's client, safe from interrupts, and patient with a server that is away."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# MLflow's own retries take four minutes until a server counts as unreachable; those here see it return within seconds.
# Before the import: the client's session is made with what stands there then.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each copy of a posterior's two files
# Its line about a run that has ended shows the server's URI whole, with its password.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from proxscore.config import masked
from proxscore.tracking import databases

LONGEST_PAUSE = 10.0  # seconds between two attempts
#: What waiting mends: a server that cannot be reached or is overloaded, a database that is locked.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class Client:
    """An ``MlflowClient`` whose calls run on a thread of their own, one after the other. Its errors keep no credentials.

    Ctrl-C and SIGTERM raise within whatever the main thread is doing. Within a transaction they may leave it open, and
    SQLite locked against every later call, that which marks the run KILLED among them. A call on another thread ends
    whole, while the main thread, which waits for it, is interrupted at once.

    Args:
        uri: of the tracking server or database.
        patience: seconds for which a call that fails for a passing reason is made again, before its error is raised.
    """

    def __init__(self, uri: str, patience: float = 0.0) -> None:
        self._thread, self.uri = _Thread(), uri
        self.patience = patience
        #: When the current call failed for the first time; none: it did not. In seconds of the monotonic clock.
        self.failing_since: float | None = None
        self._end: float | None = None  # of all calls together
        self._hurried = threading.Event()
        self._client = self._thread.submit(lambda: self._connected(uri)).result()

    def hurry(self, seconds: float) -> None:
        """From now on, calls take no longer than that, all together; one that was made before is not tried again.

        A call that takes longer raises TimeoutError, also while an earlier one is in its way.
        """
        self._end = time.monotonic() + seconds
        self._hurried.set()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*values: Any, **named: Any) -> Any:
            end = self._end
            future = self._thread.submit(lambda: self._patiently(end, method, *values, **named))
            left = None if end is None else max(end - time.monotonic(), 0.0)
            try:
                return future.result(timeout=left)
            except TimeoutError:
                if future.done():  # it is the call's own
                    raise
                raise TimeoutError("it does not answer in time") from None

        return call

    @staticmethod
    def _connected(uri: str) -> Any:
        databases.ensure(uri)
        return databases.connected(uri)

    def _patiently(self, end: float | None, method: Callable[..., Any], *values: Any, **named: Any) -> Any:
        pause = 0.5
        while True:
            try:
                result = method(*values, **named)
            except (MlflowException, OperationalError, OSError) as error:
                now = time.monotonic()
                self.failing_since = self.failing_since or now
                if end is None:
                    late = self._hurried.is_set() or now - self.failing_since > self.patience
                else:
                    late = now > end
                if late or not passing(error):
                    raise _without_credentials(error) from None
                if end is None:
                    self._hurried.wait(pause)
                else:
                    time.sleep(min(pause, 0.5))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.failing_since = None
                return result


def _without_credentials(error: Exception) -> Exception:
    """The same error: its texts are shown and kept."""
    error.args = tuple(masked(each) if isinstance(each, str) else each for each in error.args)
    if isinstance(error, MlflowException):
        error.message = masked(error.message)
    error.__cause__ = error.__context__ = None
    return error


def passing(error: Exception) -> bool:
    """Whether an error may be gone a little later."""
    return not isinstance(error, MlflowException) or error.error_code in PASSING


_Calls = queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]


class _Thread:
    """A thread that makes calls one after the other; it ends with this object, and does not keep the process alive."""

    def __init__(self) -> None:
        self._calls: _Calls = queue.SimpleQueue()
        weakref.finalize(self, self._calls.put, None).atexit = False  # a run may still be marked KILLED then
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        with self._started:
            if self._thread is None:
                self._thread = threading.Thread(target=_make, args=(self._calls,), name="tracking", daemon=True)
                self._thread.start()
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return future


def _make(calls: _Calls) -> None:
    """Make calls as they arrive, until there is none."""
    while (arrived := calls.get()) is not None:
        call, future = arrived
        try:
            future.set_result(call())
        except BaseException as error:  # it belongs to whoever waits for the result
            future.set_exception(error)
        del arrived, call, future  # what they refer to would live until the next call
