"""What a Ray cluster can hold: now, and ever, when its autoscaler has added nodes."""

# Ray's generated messages and its worker come without types.
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import ray
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.util import placement_group, remove_placement_group

from proxscore.config import Config

PATIENCE = 60.0  # seconds for the autoscaler's answer; it looks every five


@dataclass(frozen=True)
class Room:
    """How many workers the nodes that are there can hold: if nothing else ran, and beside what runs."""

    total: int
    free: int


def use_gpu(config: Config) -> bool:
    """Say whether workers get a GPU each: as configured; with ``auto``, if the cluster has (or can grow) enough of them."""
    if config.training.device != "auto":
        return config.training.device == "cuda"
    return can_ever_place(max(fewest_workers(config), 1), {"CPU": config.training.cpus_per_worker, "GPU": 1})


def fewest_workers(config: Config) -> int:
    """Count the workers without which training waits."""
    return config.training.min_workers or config.training.workers


def resources_per_worker(config: Config) -> dict[str, float]:
    """Give what each worker holds of a node, by resource."""
    return {"CPU": config.training.cpus_per_worker} | ({"GPU": 1} if use_gpu(config) else {})


def capacity() -> dict[str, float]:
    """Look up what the nodes that are there have together, by resource."""
    held: dict[str, float] = ray.cluster_resources()
    return held


def room(each: dict[str, float]) -> Room:
    """Count the workers that the nodes that are there can hold; what one takes is all of one node."""
    free = ray._private.state.available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return Room(
        sum(_hold(node["Resources"], each) for node in nodes),
        sum(_hold(free.get(node["NodeID"], {}), each) for node in nodes),
    )


def _hold(resources: dict[str, float], each: dict[str, float]) -> int:
    return min(int(resources.get(name, 0) / amount + 1e-9) for name, amount in each.items())


def grows() -> bool:
    """Say whether the cluster has an autoscaler that tells what it can never add: Ray's v2, the default of `ray up`."""
    return bool(is_autoscaler_v2(fetch_from_server=True))


def can_ever_place(workers: int, each: dict[str, float]) -> bool:
    """Say whether the cluster has room for so many workers at once, or its autoscaler can make it.

    What an autoscaler may add, Ray does not tell. So it is asked: places for all workers are requested, given back when it has
    answered whether it can ever provide them, and meanwhile nodes for them may start.

    Args:
        each: what a worker takes of a node, by resource.
    """
    if room(each).total >= workers:
        return True
    return grows() and _asked(ray.get_runtime_context().gcs_address, workers, tuple(each.items()))


@lru_cache
def _asked(cluster: str, workers: int, each: tuple[tuple[str, float], ...]) -> bool:
    group = placement_group([dict(each)] * workers)
    try:
        asked, end = _status().cluster_resource_state.cluster_resource_state_version, time.monotonic() + PATIENCE
        while time.monotonic() < end:
            answer = _status().autoscaling_state
            if answer.last_seen_cluster_resource_state_version > asked:
                never = [request.details for request in answer.infeasible_gang_resource_requests]
                return not any(details.startswith(group.id.hex()) for details in never)
            time.sleep(0.3)
    finally:
        remove_placement_group(group)
    return True  # it does not answer: Ray Train asks again, and waits


def _status() -> GetClusterStatusReply:
    gcs = ray._private.worker.global_worker.gcs_client
    return GetClusterStatusReply.FromString(gcs.get_cluster_status())
