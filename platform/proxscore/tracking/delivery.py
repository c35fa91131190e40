"""Metric points on their way to the tracking server: a thread delivers them, in order, however long that takes."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from pyarrow.fs import FileSystem

from proxscore.storage import exists, filesystem, put, read
from proxscore.tracking.client import Client

LIMIT = 1000  # metrics that MLflow takes in one batch
#: Series whose steps are recorded once, and the metric that tells which step of them is the last one recorded.
SERIES = {"steps": "nll/train", "resources": "system/rank_0/rows_per_second", "validation": "nll/validation"}


@dataclass
class Parcel:
    """Points of one report.

    Attributes:
        timestamp: of the report (ms since 1970): a parcel that is sent twice makes no second point.
        points: series -> [(step, {metric: value})].
        traces: by rank; they are not kept if the process dies.
    """

    timestamp: int
    points: dict[str, list[tuple[int, dict[str, float]]]]
    traces: dict[int, bytes] = field(default_factory=dict)


class Delivery:
    """Sends parcels to a run, on a thread, and waits while the server is away.

    What a checkpoint makes final but the server has not got is kept in a file beside the run; the next process that
    delivers to the run sends it first.

    Args:
        kept: file or URI for the parcels that wait; none: they are lost with the process.
    """

    def __init__(self, uri: str, run_id: str, kept: str | None = None) -> None:
        self._client, self._run_id = Client(uri, patience=float("inf")), run_id
        self._waiting: list[Parcel] = []
        self._changed = threading.Condition()
        self._closed = False
        self._error: Exception | None = None
        self._files: FileSystem | None = None
        self._kept = ""
        if kept is not None:
            self._files, self._kept = filesystem(kept)
        self._waiting += self._load()
        threading.Thread(target=self._run, name="delivery", daemon=True).start()

    def send(self, parcel: Parcel) -> None:
        """Queue a parcel.

        Raises:
            RuntimeError: the server has refused an earlier one for good.
        """
        self._check()
        with self._changed:
            self._waiting.append(parcel)
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Until everything is delivered, but no longer than that; if not, what waits is kept in the file."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._waiting and self._error is None and time.monotonic() < end:
                self._changed.wait(timeout=min(1.0, max(end - time.monotonic(), 0.01)))
            left = list(self._waiting)
        self._check()
        self._keep(left)
        return not left

    def close(self, seconds: float) -> None:
        """Let the thread end once all is delivered, or can no longer be within so many seconds; returns at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._client.hurry(seconds)

    @property
    def away(self) -> float | None:
        """For how many seconds the server has been unreachable; none: it answers."""
        since = self._client.failing_since
        return None if since is None else time.monotonic() - since

    @property
    def waiting(self) -> int:
        """Reports that are not delivered."""
        return len(self._waiting)

    def _check(self) -> None:
        if self._error is not None:
            reason = " ".join(str(self._error).split())[:300]
            raise RuntimeError(f"the tracking server refuses the run's metrics: {reason}") from self._error

    def _run(self) -> None:
        try:
            last = {series: self._last_step(metric) for series, metric in SERIES.items()}
            while True:
                with self._changed:
                    while not (self._waiting or self._closed):
                        self._changed.wait()
                    if not self._waiting:
                        return
                    parcel = self._waiting[0]
                self._deliver(parcel, last)
                with self._changed:
                    self._waiting.pop(0)
                    self._changed.notify_all()
        except Exception as error:  # raised where a report is made
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _last_step(self, metric: str) -> int:
        return max((point.step for point in self._client.get_metric_history(self._run_id, metric)), default=-1)

    def _deliver(self, parcel: Parcel, last: dict[str, int]) -> None:
        metrics = []
        for series, points in parcel.points.items():
            for step, values in points:
                if step > last[series]:
                    metrics += [Metric(key, value, parcel.timestamp, step) for key, value in values.items()]
                    last[series] = step
        for start in range(0, len(metrics), LIMIT):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + LIMIT])
        for rank, trace in parcel.traces.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"rank-{rank}.json.gz"
                path.write_bytes(trace)
                self._client.log_artifact(self._run_id, str(path), "profile")

    def _load(self) -> list[Parcel]:
        content = None if self._files is None else read(self._files, self._kept)
        return [] if content is None else [Parcel(**parcel) for parcel in json.loads(content)]

    def _keep(self, parcels: list[Parcel]) -> None:
        """Write the file, or remove it."""
        if self._files is None:
            return
        if parcels:
            entries: list[dict[str, Any]] = [asdict(parcel) | {"traces": {}} for parcel in parcels]
            put(self._files, self._kept, json.dumps(entries))
        elif exists(self._files, self._kept):
            self._files.delete_file(self._kept)
