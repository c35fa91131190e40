"""Turns what ranks report into metric points, once per step, and into a line of progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from proxscore.config import masked
from proxscore.terminal import Progress, duration, say
from proxscore.terminal.progress import AWAY
from proxscore.tracking.delivery import Delivery, Parcel

#: Share of the steps' time from which on a run says that it has waited for its input.
STARVED = 0.3
CHECKPOINT_PATIENCE = 2.0  # seconds: a server that is there takes milliseconds
LEAVING_PATIENCE = 20.0  # seconds for what is not delivered when a run has failed


class Recorder:
    """Receives the payloads of all ranks, report by report, and has them delivered.

    Steps that were recorded before (a resumed run repeats those since its checkpoint) are not recorded again. A server that
    is away stops nothing: points wait for it.

    Args:
        uri: of the tracking server.
        run_id: of the run.
        label: what progress lines begin with.
        show: receives progress lines; none: silent.
        kept: file or URI for points that wait for the server when a checkpoint is made; none: they wait in memory.
        patience: seconds to wait for the server when the run ends.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        label: str,
        show: Callable[[str], None] | None = say,
        kept: str | None = None,
        patience: float = 600.0,
    ) -> None:
        self.uri, self.run_id, self.label, self.show = uri, run_id, label, show
        self.kept, self.patience = kept, patience
        self._delivery: Delivery | None = None
        self._validation = ""
        self._shown = 0.0
        self._waited = self._worked = 0.0  # seconds of this process's steps, for input and in all
        self._step = 0

    def __call__(self, payloads: Sequence[dict[str, Any]]) -> None:
        """One report: ``payloads[r]`` is rank r's.

        Raises:
            RuntimeError: the server refuses the points, or did not come back in time at the end of the run.
        """
        if self._delivery is None:  # here, not in __init__: the recorder travels to the process that uses it
            self._delivery = Delivery(self.uri, self.run_id, self.kept)
        self._delivery.send(parcel(payloads))
        self._progress(payloads)
        self._count(payloads)
        first = payloads[0]
        if first["step"] == first["total_steps"]:
            self._finish(self._delivery)
        elif first["checkpoint"]:  # a run that resumes from it does not repeat these steps
            self._delivery.wait(CHECKPOINT_PATIENCE)

    def close(self) -> None:
        """Let go of the server, in a process that goes on to other runs; what is not delivered is given seconds."""
        if self._delivery is not None:
            self._delivery.close(LEAVING_PATIENCE)
            self._delivery = None

    def _count(self, payloads: Sequence[dict[str, Any]]) -> None:
        """Sum up what the steps since the last report took, and at the end say if much of it was waiting for input."""
        first, found = payloads[0], resources(payloads)
        steps, self._step = first["step"] - self._step, first["step"]
        if steps <= 0 or steps == first["step"]:  # no new ones; or it is the first report, which has what happens once
            return
        self._waited += steps * found.get("time/data", 0.0)
        self._worked += steps * sum(value for name, value in found.items() if name.startswith("time/"))
        if first["step"] == first["total_steps"] and self.show is not None and self._waited > STARVED * self._worked:
            self.show(
                f"{self.label} · {100 * self._waited / self._worked:.0f}% of the steps' time was waiting for input: a larger "
                "training.loader_processes, or images that `proxscore prepare-data --size` has made small, would speed it up"
            )

    def _finish(self, delivery: Delivery) -> None:
        if delivery.wait(CHECKPOINT_PATIENCE):
            return
        if self.show is not None:
            self.show(
                f"{self.label} · the tracking server {masked(self.uri)} is away: waiting up to {duration(self.patience)} for it"
            )
        if not delivery.wait(self.patience):
            raise RuntimeError(
                f"the tracking server {masked(self.uri)} is away: {delivery.waiting} reports wait in {self.kept}; the same name "
                "delivers them"
            )

    def _progress(self, payloads: Sequence[dict[str, Any]]) -> None:
        first = payloads[0]
        if first["metrics"]:
            found = {name: first["metrics"].get(f"validation/{name}") for name in ("nll", "ece", "crps")}
            shown = (f"{name.upper()} {value:.3f}" for name, value in found.items() if value is not None)
            self._validation = f"validation {' '.join(shown)}"
            last = first["records"][-1] if first["records"] else {}
            if "verdict/k" in last:
                self._validation += f" k {last['verdict/k']:.2f} drift {last['verdict/drift_mean_sd']:.2f} sd"
        quiet = time.monotonic() - self._shown < 2 and not first["metrics"]
        if self.show is None or not first["records"] or quiet:
            return
        self._shown = time.monotonic()
        rate = first["step"] / max(first["seconds"], 1e-9)
        left = (first["total_steps"] - first["step"]) / max(rate, 1e-9)
        ended = first["step"] == first["total_steps"]
        time_left = f"took {duration(first['seconds'])}" if ended else f"{duration(left)} left"
        about = [time_left, f"NLL {first['records'][-1]['train/nll']:.3f}", self._validation]
        about += [f"{rate:.1f} steps/s", *_costs(first["resources"]), self._away()]
        told = tuple(part for part in about if part)
        self.show(str(Progress(self.label, first["step"], first["total_steps"], first["epoch"], told)))

    def _away(self) -> str:
        """Tell of a server that is away, for the line of progress."""
        assert self._delivery is not None
        away, waiting = self._delivery.away, self._delivery.waiting
        return "" if away is None else f"{AWAY} {duration(away)}, {waiting} reports wait"


def parcel(payloads: Sequence[dict[str, Any]]) -> Parcel:
    """The points of one report of all ranks."""
    first, traces = payloads[0], {}
    steps = [combine(records) for records in zip(*(payload["records"] for payload in payloads), strict=True)]
    points = {"steps": [(int(values.pop("step")), values) for values in steps]}
    points["resources"] = [(first["step"], resources(payloads))]
    if first["metrics"]:
        metrics = {metric_name(key): value for key, value in first["metrics"].items()}
        points["validation"] = [(first["step"], metrics | {"epoch": first["epoch"]})]
    for rank, payload in enumerate(payloads):
        if "trace" in payload["resources"]:
            traces[rank] = payload["resources"]["trace"]
    return Parcel(int(time.time() * 1000), points, traces)


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
    return {
        metric_name(key): value for key, value in merged.items() if math.isfinite(value) or not key.startswith("kappa")
    }


def resources(payloads: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds per step by part (the slowest rank's), and throughput and memory of every rank."""
    found: dict[str, float] = {}
    for rank, payload in enumerate(payloads):
        for key, value in payload["resources"].items():
            if key.startswith("seconds_"):
                name = f"time/{key.removeprefix('seconds_')}"
                found[name] = max(found.get(name, 0.0), value)
            elif key != "trace":
                found[f"system/rank_{rank}/{key}"] = value
    if found:
        found["train/rows_per_second"] = sum(payload["resources"]["rows_per_second"] for payload in payloads)
    return found


def _costs(own: dict[str, Any]) -> list[str]:
    """Tell where a step's time goes, and how much memory is held, for the line of progress."""
    parts = {key.removeprefix("seconds_"): value for key, value in own.items() if key.startswith("seconds_")}
    total = sum(parts.values())
    if not total:
        return []
    shares = " ".join(f"{part.replace('_', '+')} {100 * value / total:.0f}%" for part, value in parts.items())
    return [shares, f"{own['peak_memory_gb']:.1f} GB"]


def metric_name(key: str) -> str:
    """What MLflow calls a number of a report.

    Its page of charts lists groups (what precedes the last ``/``) by the alphabet: the curves that tell most, training and
    validation NLL, are a group of their own, ``nll``, which comes first.
    """
    if key in ("train/nll", "validation/nll"):
        return f"nll/{key.removesuffix('/nll')}"
    return key if "/" in key or key == "step" else f"posterior/{key}"
