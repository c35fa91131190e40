"""CPU, memory, disk, network and GPU of a machine as metrics of a run, under ``system/`` and the machine's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def system_metrics(uri: str, run_id: str, machine: str | None = None) -> Iterator[None]:
    """Within the context, a thread records what this machine does, by MLflow's own monitor (psutil, and nvidia-ml-py for GPUs).

    Args:
        uri: of the tracking server.
        run_id: of the run.
        machine: its name among several; none: there is one.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # takes seconds

    monitor = SystemMetricsMonitor(run_id, node_id=machine, tracking_uri=uri, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
