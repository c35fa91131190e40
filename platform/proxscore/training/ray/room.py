"""What a job says while its workers wait for a place: how many have none, and what the cluster has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.util import placement_group_table

from proxscore.config import Config
from proxscore.training.ray import cluster

GRACE = 2.0  # seconds: a cluster that has just started does not know at once what is free
INTERVAL = 1.0  # seconds between looks


@contextmanager
def told(config: Config, show: Callable[[str], None]) -> Iterator[None]:
    """Within the context, say what the first group of workers waits for, whenever that changes, until it has its places.

    Ray Train asks the autoscaler for nodes by itself, and waits without a word. Nothing is said where all workers have room.
    """
    watch = _Watch(config, show)
    thread = threading.Thread(target=watch.run, daemon=True)
    if cluster.room(watch.each).free < config.training.workers:
        thread.start()
    try:
        yield
    finally:
        watch.over.set()
        if thread.ident is not None:
            thread.join()


class _Watch:
    def __init__(self, config: Config, show: Callable[[str], None]) -> None:
        self.config, self.show, self.over = config, show, threading.Event()
        self.each = cluster.resources_per_worker(config)
        self._before = set(placement_group_table())

    def run(self) -> None:
        said, of, least = None, self.config.training.workers, cluster.fewest_workers(self.config)
        pause = 0.0 if cluster.room(self.each).total < least else GRACE  # what there is, is known at once
        while not self.over.wait(pause):
            pause = INTERVAL
            room, placed = cluster.room(self.each), self._placed()
            if placed or room.free >= least:
                if said is not None:
                    self.show(
                        f"there is room for {placed or min(room.free, of)} of {_counted(of, 'worker')}: they start"
                    )
                return
            line = self._line(room)
            if line != said:
                self.show(line)
                said = line

    def _placed(self) -> int:
        """Count the workers of the group that has its places; 0: none has. Another job's of the same kind may be taken for it."""
        for key, group in placement_group_table().items():
            bundles = list(group["bundles"].values())
            if key not in self._before and group["state"] == "CREATED" and bundles and bundles[0] == self.each:
                return len(bundles)
        return 0

    def _line(self, room: cluster.Room) -> str:
        wanted, least = self.config.training.workers, cluster.fewest_workers(self.config)
        needs = " and ".join(f"{amount:g} {name}" for name, amount in self.each.items())
        missing = f"waiting for {least - room.free} of {_counted(wanted, 'worker')}"
        if least < wanted:
            missing += f" (training begins with {least})"
        has = " and ".join(f"{ray.cluster_resources().get(name, 0):g} {name}" for name in self.each)
        nodes = _counted(sum(node["Alive"] for node in ray.nodes()), "node")
        busy = "" if room.free == room.total else f", and other work holds the places of {room.total - room.free}"
        return f"{missing}, each with {needs}: the cluster has {has} on {nodes}{busy}; nodes that join are used"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
