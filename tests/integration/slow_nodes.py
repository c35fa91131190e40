"""Ray's fake nodes, processes on this machine, which start as slowly as a cloud's: the test has time to see what is said."""

from __future__ import annotations

import time
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class SlowNodes(FakeMultiNodeProvider):
    """For ``provider: {type: external, module: slow_nodes.SlowNodes}`` of a cluster file."""

    def create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        time.sleep(5)
        super().create_node_with_resources_and_labels(*arguments)
