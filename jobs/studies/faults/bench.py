"""A cluster on this machine, a job on it, and a run that suffers the same fault several times."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.3")
os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112 (a setting of Ray's, by its name)
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's default of 15 lets whatever else runs here come first)

from mlflow import MlflowClient
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from proxscore.posterior import Posterior

ROOT = Path(__file__).resolve().parents[3]
NOTICE = 10  # seconds between the notice and the loss of a drained node
SETTINGS = [
    "task.model.kwargs={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}",
    "method.paired=false",
    "training.workers=2",
    "training.cpus_per_worker=1",
    "training.device=cpu",
    "training.batch_size=64",
    "training.validate_every=1000",
    "evaluation.draws=4",
    "tracking.interval=1",
]
# jobs/train.py, but with every line of progress, by which the faults are timed.
TRAIN = """
from proxscore.commands.train import main
from proxscore.terminal import lines
lines.PAUSE = lines.SHARE = 0.0
raise SystemExit(main())
"""
STEP = re.compile(r" · step (\d+)/")
GOING_ON = re.compile(r"going on from the checkpoint at step (\d+) \(processes: (\d+)\)")


@dataclass
class Fault:
    """What one fault did.

    Attributes:
        when: seconds since 1970.
        resumed_at: step of the checkpoint that training went on from.
        outage: seconds from the fault until training went on.
        reached: last step that was recorded before the fault.
    """

    when: float
    resumed_at: int
    outage: float
    reached: int = 0

    @property
    def again(self) -> int:
        """Steps that were trained again, as far as they had been recorded."""
        return max(self.reached - self.resumed_at, 0)


@dataclass
class Trial:
    """A run and its faults.

    Attributes:
        problems: what was not as it must be; none: the run passed.
    """

    fault: str
    faults: list[Fault] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Job:
    """A training job in a process of its own, and what it has printed so far."""

    def __init__(self, folder: Path, address: str, name: str, settings: list[str]) -> None:
        self.folder, self.name = folder, name
        self.command = [sys.executable, "-c", TRAIN, f"name={name}", *SETTINGS, *settings]
        self.command += ["--result", f"{name}.json"]
        self.env = os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "platform")}
        self.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        self.lines: list[tuple[float, str]] = []
        self.start()

    def start(self) -> None:
        """Run the job; again, if it was killed."""
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.lines.append((time.time(), line.rstrip()))

    def step(self, since: float) -> int:
        """The last one that it has told of since then."""
        told = [match for when, line in list(self.lines) if when > since and (match := STEP.search(line))]
        return int(told[-1][1]) if told else 0

    def resumptions(self, since: float) -> list[tuple[float, int, int]]:
        """(time, step, processes) of each time that training went on from a checkpoint."""
        found = ((when, GOING_ON.search(line)) for when, line in list(self.lines) if when >= since)
        lines = [(when, int(match[1]), int(match[2])) for when, match in found if match]
        # Nodes of one machine share a folder of logs: each of them forwards a line that one worker has printed.
        return [
            line
            for before, line in zip([None, *lines], lines, strict=False)
            if before is None or before[1:] != line[1:]
        ]

    def wait_until(self, condition: Any, what: str, seconds: float = 240) -> None:
        """Raises RuntimeError if the job ends first, or after so many seconds."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{what}: did not happen; the job printed: {self.tail()}")
            time.sleep(0.05)

    def tail(self) -> str:
        """What it said at the end."""
        errors = [line for _, line in self.lines if line.startswith("error:")]
        return (errors or [line for _, line in self.lines] or ["nothing"])[-1][:500]

    def finish(self) -> int:
        """Its exit status."""
        try:
            self.process.wait(timeout=400)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.reader.join(timeout=10)
        return self.process.wait()


class Bench:
    """The cluster, and the trials on it."""

    def __init__(self, folder: Path, epochs: int, seed: int) -> None:
        self.folder, self.epochs, self.random = folder, epochs, random.Random(seed)
        store = 150_000_000
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": store, "include_dashboard": False},
        )
        self.size: dict[str, Any] = {"num_cpus": 1, "object_store_memory": store}
        self.nodes = [self.cluster.add_node(**self.size) for _ in range(2)]
        self.cluster.wait_for_nodes()

    def job(self, name: str, *settings: str) -> Job:
        """Start one."""
        return Job(self.folder, self.cluster.address, name, [f"training.epochs={self.epochs}", *settings])

    def reference(self) -> None:
        """The undisturbed run."""
        job = self.job("undisturbed")
        job.wait_until(lambda: job.step(0), "the beginning of training")
        started = time.monotonic()
        if job.finish() != 0:
            raise SystemExit(f"the undisturbed run failed: {job.tail()}")
        self.seconds = time.monotonic() - started
        self.result = self.outcome("undisturbed")
        self.steps = self.result["steps"]

    def outcome(self, name: str) -> dict[str, Any]:
        """What a job has left."""
        (run,) = json.loads((self.folder / f"{name}.json").read_text())["runs"]
        return dict(run)

    def trial(self, fault: str, times: int) -> Trial:
        """One run that suffers a fault so many times."""
        settings = {
            "drain": ["training.max_failures=0", "training.checkpoint_every=1000", "tracking.interval=0.3"],
            "elastic": ["training.min_workers=1", "training.resize_interval=5", f"training.epochs={4 * self.epochs}"],
        }
        trial, resumed_at, since = Trial(fault), 0, 0.0
        job = self.job(fault, "training.max_failures=-1", *settings.get(fault, []))
        try:
            for _ in range(times):
                since, resumed_at = self.suffer(trial, job, since, resumed_at)
            self.judge(trial, job, job.finish())
        except RuntimeError as error:
            job.process.kill()
            trial.problems.append(str(error))
        while len(self.nodes) < 2:
            self.nodes.append(self.cluster.add_node(**self.size))
        return trial

    def suffer(self, trial: Trial, job: Job, since: float, resumed_at: int) -> tuple[float, int]:
        """The next fault; when training went on from it, and from which step."""
        target = resumed_at + self.random.randint(20, 80)
        job.wait_until(lambda: job.step(since) >= target, f"step {target}")
        time.sleep(self.random.uniform(0, 1))
        lost = getattr(self, f"lose_{trial.fault}")(job)
        job.wait_until(lambda: job.resumptions(lost), "going on")
        since, resumed_at, _ = job.resumptions(lost)[0]
        trial.faults.append(Fault(lost, resumed_at, since - lost))
        print(f"{trial.fault}: on from step {resumed_at} after {since - lost:.1f} s", flush=True)
        return self.join(job, since) if trial.fault == "elastic" else (since, resumed_at)

    def lose_worker(self, job: Job) -> float:
        """Kill a worker; returns when."""
        family = psutil.Process().children(recursive=True)
        victim = self.random.choice([process for process in family if "RayTrainWorker" in _command(process)])
        victim.send_signal(signal.SIGKILL)
        return time.time()

    def lose_node(self, job: Job, *, replace: bool = True) -> float:
        """Kill a node with all that runs on it."""
        self.cluster.remove_node(self.nodes.pop(self.random.randrange(2)), allow_graceful=False)
        lost = time.time()
        if replace:
            self.nodes.append(self.cluster.add_node(**self.size))
        return lost

    def lose_drain(self, job: Job) -> float:
        """Give notice to a node, let another one join, and take the first away when its time is over."""
        victim = self.nodes.pop(self.random.randrange(2))
        # What `ray drain-node` does, without the seconds that it takes to start.
        client, deadline = GcsClient(address=self.cluster.address), int(1000 * (time.time() + NOTICE))
        spot: int = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
        accepted, reason = client.drain_node(victim.node_id, spot, "reclaimed", deadline)
        if not accepted:
            raise RuntimeError(f"the node was not drained: {reason}")
        lost = time.time() + NOTICE  # Ray takes the workers away then; the machine itself goes a little later
        self.nodes.append(self.cluster.add_node(**self.size))
        time.sleep(max(lost - time.time(), 0))
        time.sleep(3)
        self.cluster.remove_node(victim, allow_graceful=False)
        return lost

    def lose_driver(self, job: Job) -> float:
        """Kill the job and start it again."""
        job.process.kill()
        lost = time.time()
        job.process.wait()
        job.reader.join(timeout=10)
        job.start()
        return lost

    def lose_elastic(self, job: Job) -> float:
        """Kill a node."""
        return self.lose_node(job, replace=False)

    def join(self, job: Job, since: float) -> tuple[float, int]:
        """Let a node join once training has gone on without it; when, and from which step, two workers went on."""
        job.wait_until(lambda: job.step(since), "steps of one worker")
        if [processes for _, _, processes in job.resumptions(since)] != [1]:
            raise RuntimeError("training did not go on with one worker")
        self.nodes.append(self.cluster.add_node(**self.size))
        job.wait_until(lambda: any(n == 2 for _, _, n in job.resumptions(since)), "going on with two workers")
        when, step, _ = job.resumptions(since)[-1]
        return when, step

    def judge(self, trial: Trial, job: Job, status: int) -> None:
        """Fill in what the record says, and compare with the undisturbed run."""
        if status != 0:
            trial.problems.append(f"the job ended with status {status}: {job.tail()}")
            return
        result = self.outcome(job.name)
        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        history = client.get_metric_history(result["mlflow_run_id"], "nll/train")
        times = Counter(point.step for point in history)
        if sorted(times) != list(range(1, result["steps"] + 1)):
            trial.problems.append(f"{result['steps'] - len(times)} steps are missing from the record")
        if max(times.values()) > 1:
            trial.problems.append("steps were recorded twice")
        if client.get_run(result["mlflow_run_id"]).info.status != "FINISHED":
            trial.problems.append("the run is not marked FINISHED")
        for fault in trial.faults:
            fault.reached = max((point.step for point in history if point.timestamp <= 1000 * fault.when), default=0)
        if trial.fault == "elastic":
            ours, theirs = (run["test"]["posterior"]["accuracy"] for run in (result, self.result))
            if ours < theirs - 0.05:
                trial.problems.append(f"test accuracy {ours:.3f} instead of {theirs:.3f}")
        elif result["test"] != self.result["test"] or not _same(Path(result["folder"]), Path(self.result["folder"])):
            trial.problems.append("the result is not that of the undisturbed run")


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def _same(one: Path, other: Path) -> bool:
    """Whether two runs have left the same posterior, bit for bit."""
    ours, theirs = (Posterior.load(folder / "posterior") for folder in (one, other))
    pairs = [(getattr(ours, group), getattr(theirs, group)) for group in ("mean", "precision")]
    return all(a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a) for a, b in pairs)
