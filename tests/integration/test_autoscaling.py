"""A job that wants more than the cluster has says what it waits for, and starts when nodes join; idle nodes leave."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.util import placement_group, remove_placement_group

from proxscore import config as configuration
from proxscore.config import Config
from proxscore.training.ray import room

SMALL = {
    "task": {
        "model": {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}},
        "data": {"kind": "digits", "limit": 200},
    },
    "training": {"epochs": 2, "batch_size": 50, "device": "cpu"},
    "evaluation": {"draws": 2},
}


def wanting(workers: int, cpus: float) -> Config:
    training = {**SMALL["training"], "workers": workers, "cpus_per_worker": cpus}
    return configuration.parse(SMALL | {"training": training})


@pytest.mark.usefixtures("ray_local")
def test_a_job_on_a_busy_cluster_says_what_it_waits_for_and_when_there_is_room() -> None:
    """Of four CPUs another job holds three."""
    other = placement_group([{"CPU": 3}])
    ray.get(other.ready(), timeout=60)
    said: list[str] = []
    try:
        with room.told(wanting(2, 2), said.append):
            wait_for(lambda: bool(said))
            assert said == [
                "waiting for 2 of 2 workers, each with 2 CPU: the cluster has 4 CPU on 1 node, and other work holds the places "
                "of 2; nodes that join are used"
            ]
            remove_placement_group(other)
            wait_for(lambda: len(said) == 2)
    finally:
        remove_placement_group(other)
    assert said[1] == "there is room for 2 of 2 workers: they start"


@pytest.mark.usefixtures("ray_local")
def test_a_job_that_has_room_says_nothing() -> None:
    said: list[str] = []
    with room.told(wanting(2, 1), said.append):
        time.sleep(0.5)
    assert said == []


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@dataclass(frozen=True)
class Scaled:
    """A head that offers no CPU, and an autoscaler that may add two nodes of one CPU each."""

    env: dict[str, str]
    log: Path  # of the autoscaler

    def nodes(self) -> int:
        """Live nodes that are no head."""
        code = "import ray; ray.init(logging_level='ERROR', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()) - 1)"
        done = subprocess.run([sys.executable, "-c", code], env=self.env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)


@pytest.fixture(scope="module")
def scaled(repository: Path) -> Iterator[Scaled]:
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    address = f"{ray.util.get_node_ip_address()}:{6385 + os.getpid() % 100}"
    empty: list[str] = []
    kinds = {
        FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}, "max_workers": 2},
    }
    file = {
        "cluster_name": "fake",
        "max_workers": 2,
        "provider": {
            **{"type": "external", "module": "slow_nodes.SlowNodes", "disable_node_updaters": True},
            **{"launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": address},
        },
        "available_node_types": kinds,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "idle_timeout_minutes": 0.1,
        "auth": {},
        **{"docker": {}, "file_mounts": {}, "upscaling_speed": 1.0},
        **{"cluster_synced_files": empty, "rsync_exclude": empty, "rsync_filter": empty},
        **{f"{part}_commands": empty for part in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{part}_start_ray_commands": empty for part in ("head", "worker")},
    }
    (folder / "cluster.yaml").write_text(yaml.safe_dump(file))
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{repository / 'platform'}",
        **{"RAY_ADDRESS": address, "RAY_TMPDIR": str(folder), "RAY_FAKE_CLUSTER": "1"},
        **{"RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
    }
    here = {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    command = [
        *("ray", "start", "--head", "--block", "--disable-usage-stats", f"--port={address.partition(':')[2]}"),
        *("--include-dashboard=false", f"--temp-dir={folder}", "--num-cpus=0", "--object-store-memory=100000000"),
        f"--autoscaling-config={folder / 'cluster.yaml'}",
    ]
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(
            command,
            cwd=folder,
            env={name: value for name, value in (env | here).items() if name != "RAY_ADDRESS"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "start.log").read_text())
        yield Scaled(env, folder / "session_latest" / "logs" / "monitor.log")
    finally:
        for each in psutil.process_iter(["cmdline"]):  # the autoscaler's nodes are no children of the head's
            if str(folder) in " ".join(each.info["cmdline"] or []):
                each.kill()
        head.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def train(scaled: Scaled, repository: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, str(repository / "jobs" / "train.py"), "task.model.name=small_cnn", "task.data.kind=digits"),
        *(
            "task.model.kwargs={width: 4, hidden: 8}",
            "task.data.limit=200",
            "training.batch_size=50",
            "training.device=cpu",
        ),
        *("training.epochs=2", "evaluation.draws=2", "name=scaled", *overrides),
    ]
    return subprocess.run(command, cwd=folder, env=scaled.env, capture_output=True, text=True, timeout=180)


@pytest.mark.slow
def test_a_job_waits_for_the_autoscalers_nodes_which_leave_when_idle(
    scaled: Scaled, repository: Path, tmp_path: Path
) -> None:
    assert scaled.nodes() == 0
    done = train(scaled, repository, tmp_path, "training.workers=2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("waiting", "there is room"))]
    assert lines[0] == (
        "waiting for 2 of 2 workers, each with 1 CPU: the cluster has 0 CPU on 1 node; nodes that join are used"
    )
    assert lines[-1] == "there is room for 2 of 2 workers: they start"
    assert re.search(r"scaled-proximal_score · step 8/8", done.stdout)
    wait_for(lambda: scaled.nodes() == 0, 120)


@pytest.mark.slow
def test_what_the_autoscaler_can_never_add_is_refused_in_one_line(
    scaled: Scaled, repository: Path, tmp_path: Path
) -> None:
    done = train(scaled, repository, tmp_path, "training.workers=3")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == (
        "error: training.workers=3 at 1 CPUs each cannot all be placed: the cluster has 0 CPUs and 0 GPUs, and its autoscaler "
        "can never add nodes enough; use fewer workers, or more max_workers there"
    )


@pytest.mark.slow
def test_an_elastic_job_begins_with_the_nodes_that_there_can_be(
    scaled: Scaled, repository: Path, tmp_path: Path
) -> None:
    done = train(
        scaled, repository, tmp_path, "training.workers=3", "training.min_workers=1", "training.resize_interval=2"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "waiting for 1 of 3 workers (training begins with 1), each with 1 CPU: the cluster has 0 CPU" in done.stdout
    assert re.search(r"scaled-proximal_score · step 8/8", done.stdout)
