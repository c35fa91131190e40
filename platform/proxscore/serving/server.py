"""The server on Ray Serve: requests that arrive together are predicted together, by one replica of several.

* ``POST /predict`` (and ``/invocations``, as MLflow's servers call it): see :mod:`proxscore.serving.requests`.
* ``GET /health``: 200 once the posterior is open.
* ``GET /metrics``: Prometheus, of all nodes of the cluster.
* ``GET /``: what is served.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.util.metrics import Counter, Histogram
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from proxscore.serving.replica import Replica, Served
from proxscore.serving.requests import RefusedError, Request, parsed

MILLISECONDS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


@dataclass(frozen=True)
class Scale:
    """How requests are batched, and how many replicas there are.

    Attributes:
        batch: requests that are predicted together, at most.
        wait: seconds that the first of them waits for others.
        replicas, most: from the first to the second, as requests queue; equal: always so many.
        cpus, gpus: of each replica.
        queue: requests of a replica, beyond which others wait, and twice which they are refused (503).
    """

    batch: int = 16
    wait: float = 0.002
    replicas: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0
    queue: int = 64


@serve.deployment
class Server:
    """What Ray Serve runs for each replica.

    Args:
        served: what, and how.
        scale: batching.
        token: that requests must bring, but for health; none: none.
    """

    def __init__(self, served: Served, scale: Scale, token: str | None) -> None:
        self.replica, self.served, self.token = Replica(served), served, token
        batching: Any = self.batch  # what Ray Serve makes of the method
        batching.set_max_batch_size(scale.batch)
        batching.set_batch_wait_timeout_s(scale.wait)
        self.requests = Counter("proxscore_requests", "Requests by HTTP status", tag_keys=("status",))
        self.rows = Counter("proxscore_rows", "Rows that were predicted")
        self.failed = Counter("proxscore_rows_failed", "Rows that could not be predicted")
        self.draws = Histogram("proxscore_draws", "Draws of an answer", boundaries=[1.0, 2, 4, 8, 16, 32, 64, 128])
        self.times = Histogram("proxscore_milliseconds", "From request to answer", boundaries=MILLISECONDS)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def batch(self, requests: list[Request]) -> list[Any]:
        """Predict what has arrived together, on a thread: health stays answered."""
        return await asyncio.to_thread(self.replica.answers, requests)

    async def __call__(self, http: HTTPRequest) -> Response:
        """Answer a request by its path."""
        path = http.url.path.rstrip("/") or "/"
        if path == "/health":  # answered once the posterior is open
            return PlainTextResponse("ok")
        try:
            self._check_token(http)
            if path in ("/predict", "/invocations"):
                if http.method != "POST":
                    raise RefusedError(f"{path} takes POST", 405)
                return await self._answered(http)
            if path == "/metrics":
                return PlainTextResponse(await asyncio.to_thread(exported))
            if path == "/":
                return JSONResponse(self._about())
            raise RefusedError(f"there is no {path}; there are /predict, /invocations, /health, /metrics and /", 404)
        except RefusedError as error:
            self.requests.inc(tags={"status": str(error.status)})
            return JSONResponse({"error": str(error)}, status_code=error.status)

    async def _answered(self, http: HTTPRequest) -> JSONResponse:
        started = time.perf_counter()
        request = parsed(await self._body(http), self.replica.predictor.takes, self.served.limits)
        answer = await self.batch(request)
        if isinstance(answer, RefusedError):
            raise answer
        failed = sum("error" in row for row in answer["predictions"])
        self.requests.inc(tags={"status": "200"})
        self.rows.inc(max(len(answer["predictions"]), 1))
        if failed:
            self.failed.inc(failed)
        self.draws.observe(max(answer["draws"], 1))
        self.times.observe(1000 * (time.perf_counter() - started))
        return JSONResponse(answer)

    async def _body(self, http: HTTPRequest) -> bytes:
        parts, size = [], 0
        async for part in http.stream():
            size += len(part)
            if size > self.served.limits.bytes:
                raise RefusedError(f"the body has more than {self.served.limits.bytes:,} bytes", 413)
            parts.append(part)
        return b"".join(parts)

    def _check_token(self, http: HTTPRequest) -> None:
        given = http.headers.get("authorization", "")
        if self.token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise RefusedError("give the token of this server: Authorization: Bearer TOKEN", 401)

    def _about(self) -> dict[str, Any]:
        """What is served, what a request may hold, and what is to be known of the posterior."""
        predictor, limits = self.replica.predictor, self.served.limits
        return {
            "posterior": self.served.posterior,
            "network": predictor.config.task.network,
            "takes": predictor.takes,
            "draws": self.replica.draws,
            "seed": self.replica.seed,
            "latency_budget_ms": None if self.served.seconds is None else 1000 * self.served.seconds,
            "limits": {"rows": limits.rows, "draws": limits.draws, "bytes": limits.bytes},
            "verdict": predictor.verdict,
            "notes": list(predictor.notes),
        }


def exported() -> str:
    """The Prometheus metrics of all nodes whose names begin with ``ray_proxscore`` or ``ray_serve``."""
    import urllib.request

    lines: list[str] = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                text = answer.read().decode()
        except OSError as error:
            lines.append(f"# {address}: {error}")
            continue
        wanted = (
            "ray_proxscore",
            "ray_serve_deployment",
            "ray_serve_num",
            "# HELP ray_proxscore",
            "# TYPE ray_proxscore",
        )
        lines += [line for line in text.splitlines() if line.startswith(wanted)]
    return "\n".join(lines) + "\n"


def application(served: Served, scale: Scale, token: str | None) -> Any:
    """What ``serve.run`` starts."""
    replicas: dict[str, Any] = {"num_replicas": scale.replicas}
    if scale.most > scale.replicas:
        replicas = {
            "autoscaling_config": {
                "min_replicas": scale.replicas,
                "max_replicas": scale.most,
                "target_ongoing_requests": max(scale.batch, 1),
            }
        }
    return Server.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        max_ongoing_requests=scale.queue,
        max_queued_requests=scale.queue,
        health_check_period_s=10,
        health_check_timeout_s=60,
        **replicas,
    ).bind(served, scale, token)
