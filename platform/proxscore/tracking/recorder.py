"""Turns what ranks report into metric points, once per step, and into a line of progress."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric

from proxscore.tracking.client import Client

LIMIT = 1000  # metrics that MLflow takes in one batch


def say(line: str) -> None:
    """Print a line at once. The builtin itself cannot travel to another process once Ray has replaced it by its own."""
    print(line, flush=True)


class Recorder:
    """Receives the payloads of all ranks, report by report.

    Steps that were recorded before (a resumed run repeats those since its checkpoint) are not recorded again.

    Args:
        uri: of the tracking server.
        run_id: of the run.
        label: what progress lines begin with.
        show: receives progress lines; none: silent.
    """

    def __init__(self, uri: str, run_id: str, label: str, show: Callable[[str], None] | None = say) -> None:
        self.uri, self.run_id, self.label, self.show = uri, run_id, label, show
        self._client: Client | None = None
        self._recorded = self._validated = self._measured = -1
        self._validation = ""
        self._shown = 0.0

    def __call__(self, payloads: Sequence[dict[str, Any]]) -> None:
        """One report: ``payloads[r]`` is rank r's."""
        if self._client is None:  # here, not in __init__: the recorder travels to the process that uses it
            self._client = Client(self.uri)
            self._recorded = self._last_step("train/nll")
            self._validated = self._last_step("validation/nll")
            self._measured = self._last_step("rank_0/rows_per_second")
        first = payloads[0]
        now = int(time.time() * 1000)
        metrics = []
        for records in zip(*(payload["records"] for payload in payloads), strict=True):
            step = int(records[0]["step"])
            if step > self._recorded:
                metrics += [Metric(key, value, now, step) for key, value in combine(records).items() if key != "step"]
                self._recorded = step
        if first["step"] > self._measured:
            metrics += [Metric(key, value, now, first["step"]) for key, value in resources(payloads).items()]
            self._measured = first["step"]
        if first["metrics"] and first["step"] > self._validated:
            metrics += [Metric(key, value, now, first["step"]) for key, value in first["metrics"].items()]
            metrics.append(Metric("epoch", first["epoch"], now, first["step"]))
            self._validated = first["step"]
        for start in range(0, len(metrics), LIMIT):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + LIMIT])
        for rank, payload in enumerate(payloads):
            if "trace" in payload["resources"]:
                self._trace(rank, payload["resources"]["trace"])
        self._progress(payloads)

    def _last_step(self, key: str) -> int:
        assert self._client is not None
        return max((point.step for point in self._client.get_metric_history(self.run_id, key)), default=-1)

    def _trace(self, rank: int, trace: bytes) -> None:
        assert self._client is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rank-{rank}.json.gz"
            path.write_bytes(trace)
            self._client.log_artifact(self.run_id, str(path), "profile")

    def _progress(self, payloads: Sequence[dict[str, Any]]) -> None:
        first = payloads[0]
        if first["metrics"]:
            nll, ece = first["metrics"]["validation/nll"], first["metrics"]["validation/ece"]
            self._validation = f" · validation NLL {nll:.3f} ECE {ece:.3f}"
        quiet = time.monotonic() - self._shown < 2 and not first["metrics"]
        if self.show is None or not first["records"] or quiet:
            return
        self._shown = time.monotonic()
        costs = _costs(first["resources"])
        rate = first["step"] / max(first["seconds"], 1e-9)
        left = (first["total_steps"] - first["step"]) / max(rate, 1e-9)
        self.show(
            f"{self.label} · step {first['step']}/{first['total_steps']} (epoch {first['epoch']:.1f}) · {rate:.1f} steps/s · "
            f"{_duration(left)} left · NLL {first['records'][-1]['train/nll']:.3f}{self._validation}{costs}"
        )


def combine(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """One step's record from those of all ranks: extremes of extremes, means of means weighted by shard size."""
    total = sum(record.get("count", 0) for record in records)
    merged: dict[str, float] = {}
    for key in dict.fromkeys(key for record in records for key in record):  # a rank may hold no sampled element
        values = [record[key] for record in records if key in record]
        if key == "count":
            continue
        if key.endswith("_min"):
            merged[key] = min(values)
        elif key.endswith("_max"):
            merged[key] = max(values)
        elif key in ("log_precision_mean", "ratio_mean"):
            merged[key] = sum(record[key] * record["count"] for record in records if key in record) / total
        else:  # the same on all ranks
            merged[key] = values[0]
    return {_name(key): value for key, value in merged.items() if math.isfinite(value) or not key.startswith("kappa")}


def resources(payloads: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds per step by part (the slowest rank's), and throughput and memory of every rank."""
    found: dict[str, float] = {}
    for rank, payload in enumerate(payloads):
        for key, value in payload["resources"].items():
            if key.startswith("seconds_"):
                name = f"time/{key.removeprefix('seconds_')}"
                found[name] = max(found.get(name, 0.0), value)
            elif key != "trace":
                found[f"rank_{rank}/{key}"] = value
    if found:
        found["train/rows_per_second"] = sum(payload["resources"]["rows_per_second"] for payload in payloads)
    return found


def _costs(own: dict[str, Any]) -> str:
    """What a step's time goes into, and memory, for the line of progress."""
    parts = {key.removeprefix("seconds_"): value for key, value in own.items() if key.startswith("seconds_")}
    total = sum(parts.values())
    if not total:
        return ""
    shares = " ".join(f"{part.replace('_', '+')} {100 * value / total:.0f}%" for part, value in parts.items())
    return f" · {shares} · {own['peak_memory_gb']:.1f} GB"


def _name(key: str) -> str:
    return key if "/" in key or key == "step" else f"posterior/{key}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
