"""MLflow's client, safe from interrupts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlflow import MlflowClient

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="tracking")  # one: calls end in the order in which they were made


class Client:
    """An ``MlflowClient`` whose calls run on a thread of their own, one after the other.

    Ctrl-C and SIGTERM raise within whatever the main thread is doing. Within a transaction they may leave it open, and
    SQLite locked against every later call, that which marks the run KILLED among them. A call on another thread ends
    whole, while the main thread, which waits for it, is interrupted at once.

    Args:
        uri: of the tracking server or database.
    """

    def __init__(self, uri: str) -> None:
        self._client = MlflowClient(tracking_uri=uri)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *values, **named: _THREAD.submit(method, *values, **named).result()
