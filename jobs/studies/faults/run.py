"""What faults cost: workers, nodes and drivers are killed at random times, nodes are drained, join and leave.

python jobs/studies/faults/run.py --times 10 --output faults.json

A Ray cluster of a head and two nodes runs on this machine, each node with processes of its own. A job with two workers
trains a small Vision Transformer on scikit-learn's digits, and suffers a fault so many times in a row, each at a random
moment: 20 to 80 steps after training has gone on from the last one, and up to a second.

    worker   one of the two is killed (SIGKILL)
    node     one of the two nodes is killed with all its processes; another one joins
    drain    one node gets notice that it will be taken away in 10 s (a spot reclaim); another one joins. The run may
             not use up a failure (max_failures=0), and makes no checkpoint but those on notice
    driver   the job itself is killed, and started again under its name
    elastic  (min_workers=1) one node is killed and not replaced until training has gone on without it; then one joins,
             and training goes on with two workers again

A run passes if the job ends well, every step is recorded exactly once, and, but for elastic, posterior and test metrics
equal those of an undisturbed run bit for bit. An elastic run takes four times the steps and must reach the undisturbed
run's test accuracy to 0.05. --others repeats the tests of the faults that need no cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
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
FAULTS = ("worker", "node", "drain", "driver", "elastic")
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
#: Faults that need no cluster, by the test that makes them.
OTHERS = {
    "full disk during a checkpoint": "tests/training/test_local_loop.py -k cannot_be_written",
    "truncated checkpoint": "tests/training/test_local_loop.py -k damaged",
    "tracking server away": "tests/tracking/test_server_away.py -k 'wait_for_the_server or outlives or away_for_a_while'",
    "unreadable image": "tests/training/test_unreadable_rows.py",
    "NaN batch": "tests/training/test_local_loop.py -k finite",
}
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
        self.command = [sys.executable, str(ROOT / "jobs" / "train.py"), f"name={name}", *SETTINGS, *settings]
        self.command += ["--result", f"{name}.json"]
        self.env = os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "platform")}
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
        history = client.get_metric_history(result["mlflow_run_id"], "train/nll")
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


def others(times: int) -> dict[str, int]:
    """How often the tests of each other fault passed."""
    passed = dict.fromkeys(OTHERS, 0)
    for fault, tests in OTHERS.items():
        for _ in range(times):
            command = f"{sys.executable} -m pytest -q -p no:cacheprovider {tests}"
            passed[fault] += subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
        print(f"{fault}: {passed[fault]} of {times}", flush=True)
    return passed


def table(trials: list[Trial], steps: int) -> str:
    """Markdown: one row per fault."""
    rows = [
        f"| fault | in a row | at steps (of {steps}; elastic: {4 * steps}) | trained again, steps: median (most) | "
        "seconds until training went on: median (most) | outcome |",
        "|---|---|---|---|---|---|",
    ]
    for trial in trials:
        again, outage = [fault.again for fault in trial.faults], [fault.outage for fault in trial.faults]
        reached = " ".join(str(fault.reached) for fault in trial.faults)
        if trial.faults:
            numbers = (
                f"{statistics.median(again):.0f} ({max(again)}) | {statistics.median(outage):.0f} ({max(outage):.0f})"
            )
            outcome = "; ".join(trial.problems) or ("well" if trial.fault == "elastic" else "bit for bit")
            rows.append(f"| {trial.fault} | {len(trial.faults)} | {reached} | {numbers} | {outcome} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--times", type=int, default=10, help="each fault, in a row")
    parser.add_argument("--epochs", type=int, default=80, help="of each job; 20 steps each")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the faults")
    parser.add_argument("--others", action="store_true", help="the tests of faults that need no cluster, instead")
    parser.add_argument("--output", type=Path, help="JSON file; finished runs are kept after each")
    options = parser.parse_args()
    if options.others:
        return 0 if all(count == options.times for count in others(options.times).values()) else 1
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), options.epochs, options.seed)
        try:
            bench.reference()
            print(
                f"undisturbed: {bench.steps} steps, {bench.seconds:.0f} s from the first of them to the end", flush=True
            )
            for fault in options.faults:
                trials.append(bench.trial(fault, options.times))
                print(f"{fault}: {'; '.join(trials[-1].problems) or 'passed'}", flush=True)
                if options.output is not None:
                    options.output.write_text(json.dumps([asdict(trial) for trial in trials], indent=2) + "\n")
        finally:
            bench.cluster.shutdown()
    print(table(trials, bench.steps))
    return 1 if any(trial.problems for trial in trials) else 0


if __name__ == "__main__":
    sys.exit(main())
