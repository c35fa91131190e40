"""What a cluster is asked before workers start: room for them, and a storage that every node can write."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from proxscore.config import Config, ConfigError, MethodSection
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
    workers = cluster.fewest_workers(config)
    wanted = workers * training.cpus_per_worker
    if wanted > cpus:
        raise ConfigError(
            f"{setting}={workers} at {training.cpus_per_worker:g} CPUs each need {wanted:g} CPUs; the cluster "
            f"can have {cpus:g}: use at most {int(cpus // training.cpus_per_worker)} workers, or fewer cpus_per_worker"
        )
    if training.device == "cuda" and workers > gpus:
        raise ConfigError(f"{setting}={workers} need a GPU each; the cluster can have {gpus:g}")
    most = min(training.workers, int(cpus // training.cpus_per_worker))
    if config.task.data.streamed and cpus - most * training.cpus_per_worker < 1:
        raise ConfigError(
            f"training.workers={training.workers} take all {cpus:g} CPUs and leave none for Ray Data to read "
            f"{config.task.data.kind} with: use training.cpus_per_worker={math.floor(10 * (cpus - 1) / most) / 10 or 0.1:g}"
        )


def check_storage(config: Config) -> None:
    """Check that every node can write the storage, and that what it writes is seen here.

    Raises:
        ConfigError: names the node.
    """
    from proxscore.training.preflight import checks

    storage = config.training.storage
    probe = ray.remote(num_cpus=0)(checks.probe_storage)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        name, address = f".probe-{node['NodeID']}", node["NodeManagerAddress"]
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        failure = ray.get(probe.options(scheduling_strategy=place).remote(storage, name))
        if failure is not None:
            raise ConfigError(f"training.storage {storage}: node {address} cannot write it: {failure}")
        if not checks.take_probe(storage, name):
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
    if cluster.use_gpu(config) or cluster.capacity().get("memory", 0) > sum(sizes):  # the autoscaler may add nodes
        return
    training = config.training
    if training.min_workers is not None:
        training = training.model_copy(update={"workers": cluster.fewest_workers(config), "min_workers": None})
    for method in methods:
        free = min(max(sizes), sum(sizes) / training.workers)
        checks.check_memory(preflight, method, free, "on this cluster each", training)
