"""The connection to a Ray cluster: the one that is named, or a new one on this machine."""

# mypy: disable-error-code="arg-type"

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
from ray._private import ray_constants

from proxscore.config import Config
from proxscore.tracking import say
from proxscore.training.ray import waiting
from proxscore.training.ray.checks import check_resources

DASHBOARD = "RAY_API_SERVER_ADDRESS"


@contextmanager
def connected(config: Config, *, log: bool = True) -> Iterator[None]:
    """Within the context, be connected to the cluster at ``RAY_ADDRESS`` (or that a job runs on), else to a new local one.

    Args:
        log: show what its processes print.

    Raises:
        ConfigError: the cluster can never place the workers.
    """
    # The controller takes one report of each worker whenever it polls them; at Ray's default of 2 s, workers wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if config.training.min_workers is not None:  # a group for a node that has just been lost is given up sooner
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    ours = not ray.is_initialized()
    with _started(log) if ours else nullcontext():
        check_resources(config)
        with waiting.told(config, say):
            yield


@contextmanager
def _started(log: bool) -> Iterator[None]:
    """Within the context, be connected; a new cluster's processes know its dashboard.

    What clears up after a run whose driver was stopped (a trial's) asks the dashboard who is alive. It looks for the cluster on
    this machine, and gives up if there are several.
    """
    new = os.environ.get("RAY_ADDRESS", "local") == "local"
    port, before = _free_port(), os.environ.get(DASHBOARD)
    if new:
        os.environ[DASHBOARD] = f"http://127.0.0.1:{port}"
    try:
        if new:
            with _loopback():
                ray.init(address="local", dashboard_port=port, logging_level=logging.WARNING, log_to_driver=log)
        else:
            ray.init(logging_level=logging.WARNING, log_to_driver=log)
        yield
    finally:
        ray.shutdown()
        if new:
            os.environ.pop(DASHBOARD)
            os.environ |= {} if before is None else {DASHBOARD: before}


@contextmanager
def _loopback() -> Iterator[None]:
    """Within the context, a new cluster's processes listen on 127.0.0.1 alone.

    Ray takes the address of a network for a node, also where loopback's is asked for, unless it is told that no cluster is meant,
    as it is by itself on macOS and Windows.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
