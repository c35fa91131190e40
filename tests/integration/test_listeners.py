"""A job's own cluster listens on loopback alone: nobody on the network finds a port of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# In a process of its own: this one may have a cluster already.
LISTENERS = """
import json, psutil, ray, time
from proxscore import config as configuration
from proxscore.training.ray import connection

def listeners():
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [(each.name(), held.laddr) for each in family for held in each.net_connections("inet") if held.status == "LISTEN"]
    return sorted((name, address.ip, address.port) for name, address in found)

with connection.connected(configuration.parse({"training": {"workers": 1}})):
    ray.get(ray.remote(lambda: None).remote(), timeout=60)
    end = time.monotonic() + 60
    while not any("Dashboard" in name for name, *_ in listeners()) and time.monotonic() < end:
        time.sleep(0.5)  # the agent comes last
    print("FOUND", json.dumps(listeners()))
"""


def test_every_port_of_a_jobs_own_cluster_is_on_loopback(repository: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(repository / "platform")}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    found = json.loads(line.removeprefix("FOUND "))
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in found}
    assert len(found) > 5
    assert [each for each in found if each[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []
