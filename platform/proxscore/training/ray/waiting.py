"""Tells how many of a run's workers are there, while it waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.util.state.exception import RayStateApiException

from proxscore.terminal import duration

WORKER = "RayTrainWorker"  # Ray Train's name of its workers' class
LOOK = 0.5  # seconds between two looks
REMIND = 30.0  # seconds after which the same number is told again


@contextmanager
def told(label: str, asked: str, workers: int, show: Callable[[str], None]) -> Iterator[None]:
    """Within the context, until all workers are there, show how many are.

    Args:
        label: of the run.
        asked: how many were asked for, in words.
        workers: the number with which training is complete.
    """
    show(f"{label} · {asked} workers asked, 0 ready")
    over = threading.Event()
    before = alive()

    def watch() -> None:
        shown, since, start = 0, time.monotonic(), time.monotonic()
        while shown < workers and not over.wait(LOOK):
            try:
                ready = len(alive() - before)
            except (RayStateApiException, ConnectionError, RuntimeError):  # the cluster is gone, or its head is busy
                return
            now = time.monotonic()
            if ready != shown or now - since > REMIND:
                waited = f" after {duration(now - start)}" if ready == shown else ""
                doing = ": they read the data and build the network" if ready >= workers else ""
                show(f"{label} · {asked} workers asked, {ready} ready{waited}{doing}")
                shown, since = ready, now

    thread = threading.Thread(target=watch, name="workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def alive() -> set[str]:
    """The workers of this job that run now."""
    job = ray.get_runtime_context().get_job_id()
    table = ray._private.state.actors(job_id=ray.JobID.from_hex(job), actor_state_name="ALIVE")
    return {actor for actor, found in table.items() if found["ActorClassName"] == WORKER}
