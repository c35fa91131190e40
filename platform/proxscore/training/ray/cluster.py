"""What a Ray cluster can hold, now or when its autoscaler has added nodes."""

from __future__ import annotations

import ray

from proxscore.config import Config


def use_gpu(config: Config) -> bool:
    """Say whether workers get a GPU each: as configured; with ``auto``, if the cluster has (or can grow) enough of them."""
    if config.training.device != "auto":
        return config.training.device == "cuda"
    return capacity().get("GPU", 0) >= fewest_workers(config)


def fewest_workers(config: Config) -> int:
    """Count the workers without which training waits."""
    return config.training.min_workers or config.training.workers


def resources_per_worker(config: Config) -> dict[str, float]:
    """Give what each worker holds of a node, by resource."""
    return {"CPU": config.training.cpus_per_worker} | ({"GPU": 1} if use_gpu(config) else {})


def capacity() -> dict[str, float]:
    """Look up the most that the cluster can ever hold, by resource: what it has, or what its autoscaler may add."""
    now = ray.cluster_resources()
    later = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(now.get(name, 0), later.get(name, 0)) for name in {*now, *later}}
