"""The connection to a Ray cluster: the one that is named, or a new one on this machine."""

# mypy: disable-error-code="arg-type"

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import ray
from ray._private import ray_constants

from proxscore.config import Config, masked
from proxscore.terminal import say
from proxscore.training.ray import logs, room
from proxscore.training.ray.checks import check_resources

DASHBOARD = "RAY_API_SERVER_ADDRESS"


@contextmanager
def connected(config: Config, show: Callable[[str], None] | None = say) -> Iterator[None]:
    """Within the context, be connected to the cluster at ``RAY_ADDRESS`` (or that a job runs on), else to a new local one.

    Args:
        show: receives lines: what is waited for, and the progress that the cluster's processes print; all else that they print
            is printed here, too. None: nothing is.

    Raises:
        ConfigError: the cluster can never place the workers.
    """
    # The controller takes one report of each worker whenever it polls them; at Ray's default of 2 s, workers wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if config.training.min_workers is not None:  # a group for a node that has just been lost is given up sooner
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    ours = not ray.is_initialized()
    with _started(show) if ours else nullcontext():
        check_resources(config)
        with room.told(config, show or (lambda line: None)):
            yield


@contextmanager
def _started(show: Callable[[str], None] | None) -> Iterator[None]:
    """Within the context, be connected; a new cluster's processes know its dashboard.

    What clears up after a run whose driver was stopped (a trial's) asks the dashboard who is alive. It looks for the cluster on
    this machine, and gives up if there are several.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    new = address == "local"
    port, before = _free_port(), os.environ.get(DASHBOARD)
    if new:
        os.environ[DASHBOARD] = f"http://127.0.0.1:{port}"
    # A note on every start, which says what the README does.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    if show is not None:
        show(
            "ray        starting"
            if address == "local"
            else f"ray        connecting to the cluster at {masked(address)}"
        )
    try:
        with warnings.catch_warnings(), _loopback() if new else nullcontext():
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
            where = {"address": "local", "dashboard_port": port} if new else {}
            ray.init(logging_level=logging.WARNING, log_to_driver=show is not None, **where)
        with ExitStack() as stack:
            if show is not None:
                nodes, has = sum(node["Alive"] for node in ray.nodes()), ray.cluster_resources()
                show(f"ray        {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, on {nodes} node(s)")
                stack.enter_context(logs.shown_by(show))
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


@contextmanager
def for_workers(workers: int | None) -> Iterator[int]:
    """Within the context, be connected to a cluster if any of its workers are wanted; gives their number.

    Args:
        workers: 0: none; null: one for each CPU (or GPU) of the cluster that this process is a job of, else none.
    """
    if workers is None and "RAY_ADDRESS" not in os.environ:
        workers = 0
    if workers == 0:
        yield 0
        return
    with nullcontext() if ray.is_initialized() else _started(None):
        held = ray.cluster_resources()
        yield workers or max(int(held.get("GPU", 0)) or int(held.get("CPU", 0)), 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
