"""Answer requests for predictions over HTTP, by replicas of a saved posterior on Ray Serve.

python jobs/serve.py models:/digits@champion
python jobs/serve.py runs/digits-proximal_score --latency-budget 50ms --max-replicas 4
curl -s localhost:8000/predict -d '{"images": ["'$(base64 -w0 image.png)'"]}'

The answer has a row for each image (or series and step), the number of draws it was made with, and whether the posterior had
converged. The server listens on this machine alone; another --host needs a token in PROXSCORE_SERVE_TOKEN. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import threading

from proxscore import job
from proxscore.commands import parser as parsers
from proxscore.config import MAX_DRAWS, ConfigError
from proxscore.config.extras import need

TOKEN = "PROXSCORE_SERVE_TOKEN"
#: Ray Serve's ways of handing a request on that take the least time (predictions run on threads of their own anyway), and
#: replicas that are no background work, as Ray's workers are by default (niceness 15).
QUICKER = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_worker_niceness": "0",
}
LOCAL = ("127.0.0.1", "localhost", "::1")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = parsers.parser("serve", __doc__)
    parser.add_argument("posterior", help="folder of a posterior or a run, runs:/ID, models:/NAME@ALIAS")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. tracking.uri=http://...")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="to listen on")
    parser.add_argument("--draws", type=int, help="of an answer that asks for no number (default: as it was judged by)")
    parser.add_argument(
        "--latency-budget", metavar="TIME", help="50ms, 0.2s: take as many draws as fit into it (default: no bound)"
    )
    parser.add_argument("--max-draws", type=int, default=64, help="of a request")
    parser.add_argument("--max-rows", type=int, default=256, help="of a request")
    parser.add_argument("--max-bytes", type=int, default=32 * 2**20, help="of a request")
    parser.add_argument("--batch", type=int, default=16, help="requests predicted together")
    parser.add_argument("--batch-wait", default="2ms", metavar="TIME", help="that a request waits for others")
    parser.add_argument("--replicas", type=int, default=1, help="at least")
    parser.add_argument("--max-replicas", type=int, help="at most, as requests queue (default: as --replicas)")
    parser.add_argument("--cpus", type=float, default=1, help="of each replica")
    parser.add_argument("--gpus", type=float, default=0, help="of each replica")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    return job.run(lambda: _work(options), "serve", interrupted="the server has ended")


def _work(options: argparse.Namespace) -> int:
    for name in ("replicas", "batch", "max_draws", "max_rows", "max_bytes"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be positive")
    if options.max_draws > MAX_DRAWS:
        raise ConfigError(f"--max-draws is {options.max_draws}; it must be at most {MAX_DRAWS}")
    if options.draws is not None and not 0 <= options.draws <= options.max_draws:
        raise ConfigError(f"--draws is {options.draws}; it must be from 0 to --max-draws={options.max_draws}")
    if not 0 < options.port < 65536:
        raise ConfigError(f"--port is {options.port}; it must be from 1 to 65535")
    if options.max_replicas is not None and options.max_replicas < options.replicas:
        raise ConfigError(f"--max-replicas is {options.max_replicas}; --replicas is {options.replicas}")
    token = os.environ.get(TOKEN) or None
    if options.host not in LOCAL and token is None:
        raise ConfigError(
            f"--host {options.host}: others reach this server: set a token in {TOKEN}, which requests must bring"
        )
    _check_port(options.host, options.port)
    seconds = None if options.latency_budget is None else duration("--latency-budget", options.latency_budget)
    wait = duration("--batch-wait", options.batch_wait)
    print(f"serve      opening {options.posterior}", flush=True)
    return serve(options, seconds, wait, token)


def serve(options: argparse.Namespace, seconds: float | None, wait: float, token: str | None) -> int:
    """Start the server, and wait until it is told to end."""
    need("serve", "serving")
    from ray import serve as ray_serve

    from proxscore.serving.replica import Served
    from proxscore.serving.requests import Limits
    from proxscore.serving.server import Scale, application
    from proxscore.tracking.located import for_workers
    from proxscore.tracking.runs import tracking_uri
    from proxscore.training.ray import connection
    from proxscore.training.saved import describe

    described = describe(options.posterior, options.overrides)  # what is wrong is said before a cluster starts
    uri = tracking_uri(described.config.tracking)
    place, overrides = for_workers(options.posterior, described.folder, options.overrides, uri)
    limits = Limits(options.max_rows, options.max_draws, options.max_bytes)
    served = Served(place, overrides, options.draws, seconds, limits, "cuda" if options.gpus else "cpu")
    most = options.max_replicas or options.replicas
    scale = Scale(options.batch, wait, options.replicas, most, options.cpus, options.gpus)
    for setting, value in QUICKER.items():  # read by the processes of a cluster that starts here
        os.environ.setdefault(setting, value)
    ended = threading.Event()
    print("starting   Ray and the first replica, which measures what draws take", flush=True)
    with connection.for_workers(most):
        ray_serve.start(
            http_options={"host": options.host, "port": options.port}, logging_config={"log_level": "WARNING"}
        )
        ray_serve.run(application(served, scale, token), name="proxscore", blocking=False)
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray's start, which sets its own
            signal.signal(number, lambda *_: ended.set())
        address = f"http://{options.host}:{options.port}"
        header = ' -H "Authorization: Bearer $PROXSCORE_SERVE_TOKEN"' if token else ""
        print(f"serving    {options.posterior} at {address}: POST /predict, GET /health, /metrics")
        key = described.config.task.example_input(described.description, options.posterior)[0]
        example = '{"images": ["\'$(base64 -w0 image.png)\'"]}' if key == "images" else '{"series": [{...}, ...]}'
        print(f"try        curl -s{header} {address}/predict -d '{example}'", flush=True)
        while not ended.wait(0.5):
            pass
        print("ending     the server finishes what it has begun", flush=True)
        ray_serve.shutdown()
    return 0


def duration(setting: str, text: str) -> float:
    """Seconds of a time such as ``50ms`` or ``0.2s``.

    Raises:
        ConfigError: it is none, or not positive.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else 0.0
    if not found or not (seconds > 0 or setting == "--batch-wait"):
        raise ConfigError(f"{setting} is {text!r}; give a time such as 50ms or 0.2s")
    return seconds


def _check_port(host: str, port: int) -> None:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--host {host} --port {port}: cannot be listened on: {error.strerror}") from error
