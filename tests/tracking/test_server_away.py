"""A real MLflow server that goes away: training goes on, points wait for it and arrive once, statuses come true."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.tracking import Recorder, TrackedRun
from proxscore.training import launch

RESET = struct.pack("ii", 1, 0)  # lingering on, for no second: what has not been sent is lost


class Server:
    """``mlflow server`` behind a port of its own, which is closed and opened again: to its clients it is gone meanwhile.

    Those who connect are refused, and connections that there were are reset in the middle, as where its process is killed.
    To start one takes seconds, so that one process serves all tests.
    """

    def __init__(self, behind: int) -> None:
        self.behind, self.port = behind, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def kill(self) -> None:
        if self._listener is not None:
            shut(self._listener)
        self._listener = None
        for each in [*self._open]:
            with suppress(OSError):  # it was closed just now
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            shut(each)
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # it is closed
                return
            server = socket.create_connection(("127.0.0.1", self.behind))
            self._open |= {client, server}
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # either is closed
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            self._open.discard(each)
            shut(each)


def shut(each: socket.socket) -> None:
    """Close a socket, and wake the thread that waits for it."""
    with suppress(OSError):  # nobody is connected
        each.shutdown(socket.SHUT_RDWR)
    each.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an MLflow server."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"),
            *("--workers", "1", "--artifacts-destination", str(folder / "artifacts"), "--port", str(port)),
        ],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes that nothing here needs
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(1800):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        else:
            raise AssertionError("the server did not start")
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def server(behind: int) -> Iterator[Server]:
    result = Server(behind)
    result.start()
    yield result
    result.kill()


def payload(step: int, total: int = 100, *, checkpoint: bool = False) -> dict[str, Any]:
    records = [{"step": step, "train/nll": float(step)}]
    progress = {"step": step, "total_steps": total, "epoch": step / 10, "seconds": 1.0}
    return progress | {"records": records, "metrics": {}, "resources": {}, "checkpoint": checkpoint}


def steps(uri: str, run_id: str) -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run_id, "nll/train")]


def test_points_wait_for_the_server_without_stopping_training_and_arrive_once(server: Server, tmp_path: Path) -> None:
    run = TrackedRun(server.uri, "away", "a run")
    lines: list[str] = []
    recorder = Recorder(server.uri, run.run_id, "a run", lines.append, str(tmp_path / "undelivered.json"))
    recorder([payload(1)])
    server.kill()
    started = time.monotonic()
    for step in range(2, 50):
        recorder([payload(step)])
    assert time.monotonic() - started < 20  # one attempt to deliver takes some seconds; had each report waited: minutes
    last = 49
    while "tracking server away for" not in lines[-1] and last < 80:
        time.sleep(2.1)  # as often as a line is shown
        last += 1
        recorder([payload(last)])
    assert "tracking server away for" in lines[-1]
    server.start()
    recorder([payload(last + 1, total=last + 1)])  # the last report waits
    assert steps(server.uri, run.run_id) == list(range(1, last + 2))
    assert not (tmp_path / "undelivered.json").exists()


def test_what_a_checkpoint_made_final_outlives_the_process(server: Server, tmp_path: Path) -> None:
    run = TrackedRun(server.uri, "away", "a run")
    kept = str(tmp_path / "undelivered.json")
    first = Recorder(server.uri, run.run_id, "a run", None, kept)
    first([payload(1, checkpoint=True)])
    server.kill()
    first([payload(2)])
    first([payload(3, checkpoint=True)])  # and then the process is lost
    server.start()
    second = Recorder(server.uri, run.run_id, "a run", None, kept)
    second([payload(3)])
    second([payload(4, total=4)])
    assert steps(server.uri, run.run_id) == [1, 2, 3, 4]
    assert not (tmp_path / "undelivered.json").exists()


def test_a_server_that_stays_away_is_an_error_at_the_end_that_says_where_the_points_are(
    server: Server, tmp_path: Path
) -> None:
    run = TrackedRun(server.uri, "away", "a run")
    kept = tmp_path / "undelivered.json"
    recorder = Recorder(server.uri, run.run_id, "a run", None, str(kept), patience=1)
    recorder([payload(1, checkpoint=True)])
    server.kill()
    with pytest.raises(RuntimeError, match=rf"is away: 1 reports wait in {kept}; the same name delivers them"):
        recorder([payload(2, total=2)])
    assert kept.exists()


def test_points_that_the_server_refuses_end_the_run(server: Server) -> None:
    run = TrackedRun(server.uri, "away", "a run")
    recorder = Recorder(server.uri, "0" * 32, "a run", None)
    assert run.run_id != "0" * 32
    with pytest.raises(RuntimeError, match=r"refuses the run's metrics: .*not found"):
        recorder([payload(1, total=1)])


def test_an_unreachable_server_is_refused_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"tracking.uri http://127.0.0.1:9: cannot be used"):
        TrackedRun("http://127.0.0.1:9", "away", "a run")
    assert time.monotonic() - started < 90  # MLflow's own retries take four minutes


@pytest.mark.parametrize(
    ("moment", "workers", "number"),
    [
        pytest.param("training", 0, signal.SIGTERM, id="training, SIGTERM", marks=pytest.mark.slow),
        pytest.param("waiting", 0, signal.SIGINT, id="waiting, Ctrl-C"),
        *(
            pytest.param(
                moment, workers, number, id=f"{moment}, {workers} workers, {number.name}", marks=pytest.mark.slow
            )
            for moment, workers, number in [
                ("training", 0, signal.SIGINT),
                ("waiting", 0, signal.SIGTERM),
                ("training", 1, signal.SIGINT),
                ("training", 1, signal.SIGTERM),
                ("waiting", 1, signal.SIGINT),
                ("waiting", 1, signal.SIGTERM),
            ]
        ),
    ],
)
def test_a_job_that_is_interrupted_while_the_server_is_away_ends_soon_and_loses_no_point(
    moment: str, workers: int, number: signal.Signals, repository: Path, server: Server, tmp_path: Path
) -> None:
    """At the end of its steps a job waits ten minutes for the server; an interrupt ends that. The same name delivers."""
    epochs, every = (40, 20) if moment == "waiting" else (4000, 2)  # a checkpoint waits for two seconds for the server
    name = f"left-{moment}-{workers}-{number.name}"
    command = [
        *(
            sys.executable,
            str(repository / "jobs" / "train.py"),
            f"name={name}",
            "task.data={kind: digits, limit: 200}",
        ),
        *(
            "task.model={name: small_cnn, kwargs: {width: 4, hidden: 8}}",
            "training.device=cpu",
            "training.batch_size=50",
        ),
        *(
            f"training.epochs={epochs}",
            "training.validate_every=40",
            f"training.checkpoint_every={every}",
            "evaluation.draws=2",
        ),
        *(
            f"training.workers={workers}",
            "training.cpus_per_worker=0.5",
            f"tracking.uri={server.uri}",
            "tracking.interval=0.1",
        ),
    ]
    folder = tmp_path / "runs" / f"{name}-proximal_score"

    def begin(*more: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"RAY_ADDRESS": "local"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([*command, *more], cwd=tmp_path, env=environment, text=True, **pipes)

    job = begin()
    assert job.stdout is not None
    for line in job.stdout:
        if " · step " in line:
            server.kill()
            break
    waiting = "is away: waiting up to" if moment == "waiting" else " · tracking server away for "
    seen = [line]
    for line in job.stdout:
        seen.append(line)
        if waiting in line:
            break
    assert waiting in seen[-1], "".join(seen)
    job.send_signal(number)
    output, _ = job.communicate(timeout=100)  # of ten minutes
    assert job.returncode == 130, output
    assert "is not marked KILLED" in output
    assert "interrupted: " in output
    assert "Traceback" not in output
    assert (folder / "undelivered.json").exists()
    assert not list(folder.glob("lock-*"))
    server.start()
    again = begin()
    if moment == "training":
        assert again.stdout is not None
        for line in again.stdout:
            if " · step " in line:
                break
        again.send_signal(number)
    output, _ = again.communicate(timeout=250)
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("proxscore").experiment_id
    (run,) = client.search_runs([experiment], f"tags.name = '{name}-proximal_score'")
    recorded = steps(server.uri, run.info.run_id)
    assert recorded == list(range(1, len(recorded) + 1))
    if moment == "waiting":
        assert again.returncode == 0, output
        assert len(recorded) == 4 * epochs
        assert not (folder / "undelivered.json").exists()


def test_a_job_whose_server_is_away_for_a_while_is_recorded_whole(server: Server, tmp_path: Path) -> None:
    """Away from some step on until after the last one: curves, final metrics, figures and status are all there."""
    config = configuration.parse(
        {
            "name": "patient",
            "task": {
                "model": {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}},
                "data": {"kind": "digits", "limit": 200},
            },
            "training": {
                "epochs": 20,
                "checkpoint_every": 20,  # one would wait for the server
                "batch_size": 50,
                "workers": 0,
                "device": "cpu",
                "storage": str(tmp_path / "runs"),
            },
            "evaluation": {"draws": 4, "validation_draws": 2},
            "tracking": {"uri": server.uri, "interval": 0},
        }
    )
    returned = threading.Timer(6, server.start)
    gone = False

    def watch(line: str) -> None:
        nonlocal gone
        if not gone and " · step " in line:
            gone = True
            server.kill()
            returned.start()

    (outcome,) = launch.run(config, watch)
    assert gone
    client = MlflowClient(server.uri)
    run = client.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert steps(server.uri, outcome.run_id) == list(range(1, outcome.results["steps"] + 1))
    epochs = [point.step for point in client.get_metric_history(outcome.run_id, "nll/validation")]
    assert epochs == [4 * epoch for epoch in range(1, 21)]
    assert run.data.metrics["test/nll"] == pytest.approx(outcome.results["test"]["posterior"]["nll"])
    assert client.list_artifacts(outcome.run_id, "figures")


def test_a_run_that_ends_does_not_show_the_servers_password(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    run = TrackedRun(server.uri.replace("://", "://alice:s3cret@"), "experiment", "run", None)
    with run.running():
        pass
    assert MlflowClient(server.uri).get_run(run.run_id).info.status == "FINISHED"
    shown = capfd.readouterr()
    assert "s3cret" not in shown.out + shown.err
