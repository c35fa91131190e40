"""Fixtures that several folders share: Ray in this process, and a Ray head in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from photographs import photographs  # noqa: F401  (a fixture)

# Before anything imports Ray or torch. No test may join a cluster that happens to run here, or write a token into the
# user's home; a lost worker is noticed in tenths of a second; and several processes share few cores.
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
    os.environ.pop(name, None)
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's default of 15 would let tests that run beside come first)
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What ranks of gloo import, once for all that are forked from one process; it knows what it was told before the first of them.
multiprocessing.set_forkserver_preload(
    [
        "proxscore.training.loop.train",
        "proxscore.vision.image_task",
        "proxscore.forecasting.series_task",
        "torch.distributed.fsdp",
    ]
)

# A shell starts what runs in its background with Ctrl-C ignored, and tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
LOGICAL_CPUS = 4  # more than the machine may have: tests wait more than they compute
OBJECT_STORE_BYTES = 200_000_000


@dataclass(frozen=True)
class RayHead:
    """A Ray head that only a client with its token can use."""

    address: str  # of the control service (GCS), host:port
    dashboard: str  # URL; also that of the job server
    env: dict[
        str, str
    ]  # for subprocesses: drivers find the head, `ray job submit` finds the job server, both the token


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that two processes end together; longest.txt has them, the longest first."""
    longest = {name: place for place, name in enumerate((ROOT / "tests" / "longest.txt").read_text().split())}
    items.sort(key=lambda item: longest.get(item.nodeid.partition("::")[0], len(longest)))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Ray in this process, never an existing cluster: 4 logical CPUs."""
    import ray

    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A real head on this machine, as a cluster has one: job server and token authentication on, free ports, a
    temporary folder of its own. Use it through subprocesses that get ``env``, not through Ray in this process."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: paths of sockets have at most 107 characters
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    gcs, dashboard, client, agent = free_ports(4)
    head = RayHead(
        address=f"127.0.0.1:{gcs}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "RAY_TMPDIR": str(folder),
            "RAY_JOB_STOP_WAIT_TIME_S": "15",  # a busy machine is slow to stop a job
        },
    )
    command = [
        *("ray", "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}", f"--num-cpus={LOGICAL_CPUS}"),
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,  # a cluster knows nothing of the checkout
            env={name: value for name, value in head.env.items() if name != "RAY_ADDRESS"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for answering in (f"{head.dashboard}/api/jobs/", f"http://127.0.0.1:{agent}/api/local_raylet_healthz"):
            wait_for(answering, token.read_text(), process, folder / "start.log")
        yield head
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nothing uses now; all are held until the last is found, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a part of the head answers; fail with the log when the head ends or 100 s are over.

    The job server answers before the node's agent, which starts the jobs; without an agent it refuses them after 10 s.
    """
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"the head did not start: {url} did not answer; {log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End this process and everything that came from it; other clusters on the machine stay (`ray stop` ends all)."""
    family = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    process.terminate()
    try:
        process.wait(timeout=5)  # one that has run jobs does not end by itself in twenty
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=20)
    for survivor in psutil.wait_procs(family, timeout=5)[1]:
        survivor.kill()
