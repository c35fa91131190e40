"""MLflow's client, safe from interrupts, and patient with a server that is away."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# MLflow's own retries take four minutes until a server counts as unreachable; those here see it return within seconds.
# Before the import: the client's session is made with what stands there then.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

LONGEST_PAUSE = 10.0  # seconds between two attempts
#: What waiting mends: a server that cannot be reached or is overloaded, a database that is locked.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class Client:
    """An ``MlflowClient`` whose calls run on a thread of their own, one after the other.

    Ctrl-C and SIGTERM raise within whatever the main thread is doing. Within a transaction they may leave it open, and
    SQLite locked against every later call, that which marks the run KILLED among them. A call on another thread ends
    whole, while the main thread, which waits for it, is interrupted at once.

    Args:
        uri: of the tracking server or database.
        patience: seconds for which a call that fails for a passing reason is made again, before its error is raised.
    """

    def __init__(self, uri: str, patience: float = 0.0) -> None:
        self._client, self._thread = MlflowClient(tracking_uri=uri), _Thread()
        self.patience = patience
        #: When the current call failed for the first time; none: it did not. In seconds of the monotonic clock.
        self.failing_since: float | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *values, **named: self._thread.submit(lambda: self._patiently(method, *values, **named)).result()

    def _patiently(self, method: Callable[..., Any], *values: Any, **named: Any) -> Any:
        pause = 0.5
        while True:
            try:
                result = method(*values, **named)
            except (MlflowException, OperationalError, OSError) as error:
                now = time.monotonic()
                self.failing_since = self.failing_since or now
                if not passing(error) or now - self.failing_since > self.patience:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.failing_since = None
                return result


def passing(error: Exception) -> bool:
    """Whether an error may be gone a little later."""
    return not isinstance(error, MlflowException) or error.error_code in PASSING


class _Thread:
    """A thread that makes calls one after the other; it does not keep the process alive."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        with self._started:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
                self._thread.start()
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return future

    def _run(self) -> None:
        while True:
            call, future = self._calls.get()
            try:
                future.set_result(call())
            except BaseException as error:  # it belongs to whoever waits for the result
                future.set_exception(error)
