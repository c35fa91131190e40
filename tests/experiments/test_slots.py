"""How many trials run at a time: what a real cluster holds, and more when it grows."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from small_sweeps import tree

from proxscore import config as configuration
from proxscore.experiments.sweep.ledger import Ledger
from proxscore.experiments.sweep.plan import Plan, plan
from proxscore.experiments.sweep.settings import TuneConfig
from proxscore.experiments.sweep.sweep import Sweep


def slots(planned: Plan, folder: Path) -> int:
    nothing: object = None
    return Sweep(planned, Ledger(str(folder / "sweep"), {}), nothing, nothing).slots()  # type: ignore[arg-type]


def as_it_grows(folder: Path) -> list[list[int]]:
    """Slots on one CPU, and after a node of four has joined."""
    half = plan(configuration.parse(tree(folder)), TuneConfig())
    whole = plan(configuration.parse(tree(folder, training={"cpus_per_worker": 1})), TuneConfig())
    limited = plan(configuration.parse(tree(folder)), TuneConfig(concurrent=2))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(cluster.address, log_to_driver=False)
        before = [slots(planned, folder) for planned in (half, whole, limited)]
        cluster.add_node(num_cpus=4)
        cluster.wait_for_nodes()
        return [before, [slots(planned, folder) for planned in (half, whole, limited)]]
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_more_nodes_are_more_trials_and_one_trial_always_queues(tmp_path: Path) -> None:
    """Two workers of half a CPU each take one CPU; two of one CPU each take two, and wait where there is one."""
    with multiprocessing.get_context("forkserver").Pool(1) as alone:  # this process may have a cluster of its own
        found = alone.apply(as_it_grows, (tmp_path,))
    assert found == [[1, 1, 1], [5, 2, 2]]
