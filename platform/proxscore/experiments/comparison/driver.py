"""Cells side by side on Ray, as far as resources allow, and the learning rates that validation data prefer."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from proxscore.config import Config, ConfigError
from proxscore.experiments import runner, selection
from proxscore.experiments.comparison import records
from proxscore.experiments.comparison.cell import failed
from proxscore.experiments.comparison.cell import run as run_cell
from proxscore.experiments.comparison.plan import Cell, Contender, Plan
from proxscore.experiments.progress import pace
from proxscore.training.loop.observer import forgets_peak
from proxscore.training.ray import checks as cluster_checks
from proxscore.training.ray import cluster, connection

Key = tuple[str, str, int]
Records = dict[Key, dict[str, Any]]
HEARTBEAT = 60.0  # seconds without a cell that ends, after which progress is shown again
FAREWELL = 20.0  # seconds that cells have to mark their runs KILLED


@dataclass
class Progress:
    """Counts cells, and shows it.

    Args:
        show: receives lines.
        total: cells, as far as it is known; those of tuned methods join when their trials are done.
        headline: the metric that is shown of a cell.
    """

    show: Callable[[str], None]
    total: int
    headline: str
    kept: int = 0
    done: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        """A cell has ended."""
        self.done += 1
        name = f"{cell.method}, {cell.setting}, seed {cell.seed}"
        if record["status"] == "finished":
            value = record["metrics"].get(self.headline)
            shown = f"{self.headline} {'undefined' if value is None else f'{value:.4f}'}"
            self.line(f"{name}: {shown}, {record['seconds']:.1f} s of training")
        else:
            self.failed += 1
            self.line(f"{name} {record['status']}: {record['reason']}")

    def line(self, what: str) -> None:
        """Cells done, rate, time left, and what just happened."""
        text = f"cells {self.kept + self.done}/{self.total}" + (f" ({self.failed} failed)" if self.failed else "")
        left = self.total - self.kept - self.done
        self.show(f"{text}{pace(self.done, left, time.monotonic() - self.started)} · {what}")


def key(cell: Cell) -> Key:
    """Method, setting and seed: what a cell is known by."""
    return cell.method, cell.setting, cell.seed


def kept(plan: Plan) -> Records | None:
    """The records of all cells, if none has to run."""
    found: Records = {}
    for cell in plan.first():
        if (record := records.finished(cell)) is None:
            return None
        found[key(cell)] = record
    chosen = [(contender, best(plan, contender, found)) for contender in plan.contenders if contender.trials]
    for cell in [
        plan.cell(contender, setting, seed) for contender, setting in chosen if setting for seed in plan.seeds
    ]:
        if (record := records.finished(cell)) is None:
            return None
        found[key(cell)] = record
    return found


@contextmanager
def connected(plan: Plan, show: Callable[[str], None]) -> Iterator[None]:
    """A Ray cluster within the context, if anything has to run.

    To be entered before the comparison's MLflow run begins: Ray takes signals to itself when it starts.

    Raises:
        ConfigError: the cluster can run no cell, or its nodes share no folder.
    """
    if kept(plan) is not None:
        yield
        return
    config = plan.config
    with connection.connected(config, show):
        if config.training.workers > 1:
            cluster_checks.check_storage(config)
            yield
            return
        if not cluster.can_ever_place(1, {"CPU": config.training.cpus_per_worker}):
            cpus = cluster.capacity().get("CPU", 0)
            raise ConfigError(
                f"training.cpus_per_worker={config.training.cpus_per_worker:g}: a cell needs so many CPUs; the cluster can have "
                f"{cpus:g}"
            )
        if config.training.device == "cuda" and not _gpus(config):
            raise ConfigError("training.device=cuda: a cell needs a GPU; the cluster can have none")
        cluster_checks.check_storage(config)
        yield


def _gpus(config: Config) -> int:
    """How many GPUs a cell takes."""
    return int(config.training.device != "cpu" and cluster.can_ever_place(1, {"GPU": 1}))


def run(plan: Plan, parent: str, show: Callable[[str], None]) -> Records:
    """Run what is not finished yet, within :func:`connected`, and keep what is.

    Args:
        parent: MLflow's id of the comparison's run.
        show: receives lines of progress.

    Returns:
        The records of all cells, finished or failed.
    """
    tuned = [contender for contender in plan.contenders if contender.trials]
    later = len(plan.seeds) - 1  # cells of a tuned method whose trials have the first seed
    progress = Progress(
        show, len({key(cell) for cell in plan.first()}) + later * len(tuned), plan.task.evaluator.headline[0]
    )
    pool = _Pool(plan, parent, progress)
    with pool.cancelling():
        for cell in plan.first():
            pool.add(cell)
        while True:
            for contender in [c for c in tuned if pool.ended(plan.trials(c))]:
                tuned.remove(contender)
                setting = best(plan, contender, pool.records)
                cells = [] if setting is None else [plan.cell(contender, setting, seed) for seed in plan.seeds]
                progress.total -= later - sum(pool.add(cell) for cell in cells)
            if not pool.wait():
                progress.line("all ended")
                return pool.records


def best(plan: Plan, contender: Contender, found: Records) -> str | None:
    """The setting of the trial with the lowest validation NLL; none if all failed."""
    found_by = {
        setting: found.get((contender.name, setting, plan.seeds[0]), {}).get("validation_nll", math.inf)
        for setting in contender.trials.values()
    }
    return selection.best(found_by)


def _why(error: RayError) -> str:
    """In one line, why Ray has no record: the task could not begin, or its process is gone (killed, or with its node)."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}".partition("\n")[0]
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return f"its process died: {type(error).__name__}: {text.strip().partition(chr(10))[0]}"


class _Pool:
    """The cells of a plan: those that run, and the records of those that ended."""

    def __init__(self, plan: Plan, parent: str, progress: Progress) -> None:
        self.plan, self.parent, self.progress = plan, parent, progress
        self.records: Records = {}
        self.running: dict[Any, Cell] = {}
        self.waiting: deque[Cell] = deque()

    def add(self, cell: Cell) -> bool:
        """Run a cell, or keep what it left if it is finished; false if it is known already."""
        if key(cell) in self.records or cell in self.running.values() or cell in self.waiting:
            return False
        record = records.finished(cell)
        if record is None:
            self.waiting.append(cell)
        else:
            self.records[key(cell)] = record
            self.progress.kept += 1
        return True

    def _begin(self) -> None:
        """Submit the cells that may begin: all that are one process, and as many on workers as the cluster has room for.

        Ray lets tasks wait for room as long as it takes, and workers of Ray Train for seconds.
        """
        if not self.waiting:  # Ray may not be there: nothing had to run
            return
        room = runner.slots(self.plan.config) - sum(
            not runner.in_one_process(cell.config) for cell in self.running.values()
        )
        later: deque[Cell] = deque()
        while self.waiting:
            cell = self.waiting.popleft()
            shared = not runner.in_one_process(cell.config)
            if shared and room < 1:
                later.append(cell)
                continue
            room -= shared
            self.running[self._submit(cell)] = cell
        self.waiting = later

    def _submit(self, cell: Cell) -> Any:
        """One process takes one cell after another, as imports take seconds: but one alone where a GPU or the system would
        keep what the last cell has held. The process of a cell on workers is their driver."""
        cpus, gpus = cell.config.training.cpus_per_worker, _gpus(cell.config)
        if not runner.in_one_process(cell.config):
            cpus, gpus = 0, 0
        most = 0 if gpus == 0 and forgets_peak() else 1
        return ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=most, max_retries=0)(run_cell).remote(
            cell, self.parent
        )

    @contextmanager
    def cancelling(self) -> Iterator[None]:
        """Interrupts what runs when the driver is interrupted, and gives it time to say so in MLflow."""
        try:
            yield
        finally:
            for reference in self.running:
                ray.cancel(reference)
            if self.running:
                ray.wait(list(self.running), num_returns=len(self.running), timeout=FAREWELL)

    def ended(self, cells: list[Cell]) -> bool:
        """Whether all of these have."""
        return all(key(cell) in self.records for cell in cells)

    def wait(self) -> bool:
        """Return when a cell has ended, or after a while; false if none runs."""
        self._begin()
        if not self.running:
            return False
        done, _ = ray.wait(list(self.running), timeout=HEARTBEAT)
        if not done:
            self.progress.line(f"{len(self.running)} running or waiting")
        for reference in done:
            cell = self.running.pop(reference)
            try:
                record = ray.get(reference)
            except RayError as error:
                record = failed(cell, _why(error))
                records.write(cell.folder, record)
            self.records[key(cell)] = record
            self.progress.ended(cell, record)
        return True
