"""What a cluster is asked before workers start: room for them, and a storage that every node can write."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from proxscore.config import Config, ConfigError, MethodSection
from proxscore.storage.probe import probe_storage, take_probe
from proxscore.training.ray import cluster

if TYPE_CHECKING:  # it takes seconds to import: not in every process of a cluster
    from proxscore.training.preflight.preflight import Preflight


def check_resources(config: Config) -> None:
    """Refuse what could only hang: more workers, CPUs or GPUs than the cluster can ever place.

    Raises:
        ConfigError: names the setting and what would fit.
    """
    training, available = config.training, cluster.capacity()
    cpus, gpus = available.get("CPU", 0), available.get("GPU", 0)
    setting = "training.workers" if training.min_workers is None else "training.min_workers"
    workers, each = cluster.fewest_workers(config), cluster.resources_per_worker(config)
    if not cluster.can_ever_place(workers, each):
        raise ConfigError(_unplaceable(config, f"{setting}={workers}", workers, cpus, gpus))
    if cluster.room(each).total < workers:  # the autoscaler makes room
        return
    most = min(training.workers, int(cpus // training.cpus_per_worker))
    if config.task.data.streamed and cpus - most * training.cpus_per_worker < 1:
        raise ConfigError(
            f"training.workers={training.workers} take all {cpus:g} CPUs and leave none for Ray Data to read "
            f"{config.task.data.kind} with: use training.cpus_per_worker={math.floor(10 * (cpus - 1) / most) / 10 or 0.1:g}"
        )


def _unplaceable(config: Config, asked: str, workers: int, cpus: float, gpus: float) -> str:
    each = config.training.cpus_per_worker
    if cluster.grows():
        has = f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, and its autoscaler can never add nodes enough"
        return (
            f"{asked} at {each:g} CPUs each cannot all be placed: {has}; use fewer workers, or more max_workers there"
        )
    if workers * each > cpus:
        return (
            f"{asked} at {each:g} CPUs each need {workers * each:g} CPUs; the cluster can have {cpus:g}: use at most "
            f"{int(cpus // each)} workers, or fewer cpus_per_worker"
        )
    if config.training.device == "cuda" and workers > gpus:
        return f"{asked} need a GPU each; the cluster can have {gpus:g}"
    fit = cluster.room(cluster.resources_per_worker(config)).total
    return (
        f"{asked} at {each:g} CPUs each: the cluster's nodes can hold {fit} of them, as a worker's CPUs are of one node"
    )


def check_storage(config: Config) -> None:
    """Check that every node can write the storage, and that what it writes is seen here.

    Raises:
        ConfigError: names the node.
    """
    storage = config.training.storage
    probe = ray.remote(num_cpus=0)(probe_storage)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        name, address = f".probe-{node['NodeID']}", node["NodeManagerAddress"]
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        failure = ray.get(probe.options(scheduling_strategy=place).remote(storage, name))
        if failure is not None:
            raise ConfigError(f"training.storage {storage}: node {address} cannot write it: {failure}")
        if not take_probe(storage, name):
            raise ConfigError(
                f"training.storage {storage}: what node {address} writes there is not seen here; give a place that all "
                "nodes share: a bucket (s3://..., gs://...) or a network file system"
            )


def check_memory(preflight: Preflight, methods: list[MethodSection]) -> None:
    """Check that the nodes that are there can hold the workers on the CPU; on GPUs, workers look for themselves.

    Raises:
        ConfigError: they cannot.
    """
    from proxscore.training.preflight import checks

    config = preflight.config
    sizes = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    training, each = config.training, cluster.resources_per_worker(config)
    if "GPU" in each or cluster.room(each).total < training.workers:  # nodes of another size may join
        return
    if training.min_workers is not None:
        training = training.model_copy(update={"workers": cluster.fewest_workers(config), "min_workers": None})
    for method in methods:
        free = min(max(sizes), sum(sizes) / training.workers)
        checks.check_memory(preflight, method, free, "on this cluster each", training)
