"""What answers over HTTP cost: the server beside ``mlflow models serve`` with the same model, on loopback.

    python jobs/studies/serving/run.py --posterior runs:/ID [--images FOLDER] [--seconds 10]

Clients in this process send one image at a time, each as soon as its last answer is there (a closed loop), to one server
after the other, in turns. Reported are requests per second, and the median and the 99th percentile of the time from request to
answer. Both servers run one process for predictions, with one thread for torch, and answer by the same draws; the answers
are compared.

* **mlflow**: ``mlflow models serve --env-manager local``, with its defaults;
* **serve**: ``proxscore serve``, with its defaults; with ``--latency-budget`` as told in the name.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pandas as pd

from proxscore.config import ConfigError
from proxscore.experiments.study import Rows, command
from proxscore.tracking import Study
from proxscore.tracking.located import located

COLUMNS = ["server", "clients", "draws", "requests per second", "p50, ms", "p99, ms", "failed"]


@contextmanager
def started(name: str, options: Namespace) -> Iterator[str]:
    """A server, for as long as the context lasts; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if name == "mlflow":
        model = located(options.posterior).parents[1]  # the model's folder, which holds artifacts/posterior
        line = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
        line += ["--port", port, "--host", "127.0.0.1"]
    else:
        budget = name.removeprefix("serve").strip()
        line = [sys.executable, str(Path(__file__).parents[2] / "serve.py"), options.posterior, "--port", port]
        line += ["--latency-budget", budget] if budget else []
    with (options.output / "server.log").open("a") as log:
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            asyncio.run(healthy(f"{address}/health", process))
            yield address
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


async def healthy(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            if process.poll() is not None:
                raise ConfigError(f"the server has ended with status {process.returncode}: see server.log")
            try:
                async with session.get(address) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # it is not there yet
            await asyncio.sleep(0.5)
    raise ConfigError("the server does not answer: see server.log")


async def load(address: str, images: list[str], clients: int, seconds: float) -> dict[str, Any]:
    """So many clients, each with one request at a time."""
    times: list[float] = []
    failed = 0
    draws: set[int] = set()
    first: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        nonlocal failed
        turn = number
        while time.perf_counter() < end:
            body = {"dataframe_split": {"columns": ["image"], "data": [[images[turn % len(images)]]]}}
            begun = time.perf_counter()
            async with session.post(f"{address}/invocations", json=body) as answer:
                found = await answer.json()
            times.append(time.perf_counter() - begun)
            failed += answer.status != 200
            if "draws" in found:
                draws.add(found["draws"])
            if turn == 0 and not first:
                first.append(found["predictions"][0]["confidence"])
            turn += clients

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(number, session) for number in range(clients)))
    ordered = sorted(times)
    return {
        "rate": len(times) / seconds,
        "p50": 1000 * statistics.median(ordered),
        "p99": 1000 * ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)],
        "failed": failed,
        "draws": f"{min(draws)} to {max(draws)}" if len(draws) > 1 else str(*draws) if draws else "all",
        "confidence": first[0] if first else None,
    }


def ran(measured: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
    """What clients found."""
    return asyncio.run(measured())


def measure(options: Namespace, record: Study, rows: Rows) -> None:
    """All servers, by each number of clients."""
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in sorted(options.images.rglob("*.png"))[:200]]
    if not encoded:
        raise ConfigError(f"--images {options.images}: no PNG files there")
    servers = ["mlflow", "serve", f"serve {options.budget}"]
    seconds = 2.0 if options.quick else options.seconds
    for turn in range(1 if options.quick else options.seeds):
        for name in servers:
            wanted = [{"server": name, "clients": clients, "turn": turn} for clients in options.clients]
            if all(json.dumps(key, sort_keys=True) in rows.held for key in wanted):
                continue
            with started(name, options) as address:
                asyncio.run(load(address, encoded, 1, 2.0))  # the first requests prepare the draws
                for key in wanted:
                    measured = functools.partial(load, address, encoded, key["clients"], seconds)
                    rows.row(key, functools.partial(ran, measured))
    lines = []
    for name in servers:
        for clients in options.clients:
            keys = [
                {"server": name, "clients": clients, "turn": turn}
                for turn in range(1 if options.quick else options.seeds)
            ]
            found = pd.DataFrame([rows.row(key, dict) for key in keys])
            spread = {column: f"{found[column].median():.1f} ({found[column].min():.1f} to {found[column].max():.1f})"
                      for column in ("rate", "p50", "p99")}  # fmt: skip
            lines.append([name, str(clients), found["draws"].iloc[-1], *spread.values(), str(found["failed"].sum())])
    record.table("serving", COLUMNS, lines)
    confidences = {
        name: rows.row({"server": name, "clients": options.clients[0], "turn": 0}, dict)["confidence"]
        for name in servers
    }
    print("confidence of the first image:", ", ".join(f"{name} {value:.6f}" for name, value in confidences.items()))


if __name__ == "__main__":
    sys.exit(
        command(
            "serving",
            __doc__,
            measure,
            {
                "posterior": {"required": True, "help": "a run or a registered model in MLflow"},
                "images": {"type": Path, "required": True, "help": "folder with PNG files"},
                "clients": {"type": int, "nargs": "+", "default": [1, 8, 32], "help": "at a time (default: 1 8 32)"},
                "seconds": {
                    "type": float,
                    "default": 10.0,
                    "help": "for each number of clients (default: %(default)s)",
                },
                "budget": {"default": "10ms", "help": "latency budget of the third server (default: %(default)s)"},
            },
        )
    )
