"""What a sweep remembers of its trials: one JSON file beside their checkpoints, from which a killed sweep goes on."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from proxscore.config import ConfigError
from proxscore.experiments.sweep.space import Params
from proxscore.storage import UNREACHABLE, filesystem, put, read

Status = Literal["running", "finished", "stopped", "interrupted", "failed"]


@dataclass
class Trial:
    """One run of a sweep.

    Attributes:
        number: in the sweep, from 0 on.
        stage: found by the search, or a repetition of a good one from another seed.
        params: values by dotted key; none: the configuration as it is given.
        seed: of the run.
        epochs: at which it ends.
        run_id: in MLflow.
        status: ``stopped`` early by the scheduler; ``interrupted``: the sweep ended before it, and takes it up again.
        curve: validation metrics in the order of their ``epoch``.
        final: validation metrics with all draws of the evaluation, when it is finished.
        seconds: that it took, over all attempts.
        error: of a failed one, in a line.
        diverged: whether it failed because its numbers were no longer finite.
        parent: whose last checkpoint it starts from (population), by number.
        member, round: of the population.
    """

    number: int
    stage: Literal["search", "repeat"] = "search"
    params: Params = field(default_factory=dict)
    seed: int = 0
    epochs: float = 0.0
    run_id: str = ""
    status: Status = "running"
    curve: list[dict[str, float]] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    diverged: bool = False
    parent: int | None = None
    member: int | None = None
    round: int | None = None

    @property
    def outcome(self) -> str:
        """The status, as people are told."""
        return "diverged" if self.status == "failed" and self.diverged else self.status

    def value(self, metric: str) -> float:
        """The metric at the end, or as far as the trial came; infinite before the first validation."""
        found = self.final or (self.curve[-1] if self.curve else {})
        return found.get(metric, math.inf)

    @property
    def epoch(self) -> float:
        """Epochs that it has come to."""
        return self.curve[-1]["epoch"] if self.curve else 0.0

    def report(self, metrics: dict[str, float]) -> None:
        """Validation metrics at an epoch; what a restarted run repeats counts once."""
        if not self.curve or metrics["epoch"] > self.epoch:
            self.curve.append(metrics)


class Ledger:
    """All trials of a sweep.

    Args:
        folder: of the sweep, a path or a URI.
        settings: that its trials depend on.

    Raises:
        ConfigError: the folder cannot be written, or its trials were made with other settings; names the first.
    """

    def __init__(self, folder: str, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.trials: list[Trial] = []
        self.run_id: str | None = None
        self.search_seconds = 0.0  # that the search has run, over all attempts
        self.found: dict[str, Any] | None = None  # what the sweep came to, once it is finished
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        try:
            self.files, root = filesystem(folder)
            self.path = f"{root.rstrip('/')}/sweep.json"
            self.files.create_dir(root, recursive=True)
            self._read()
        except UNREACHABLE as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"training.storage: {folder} cannot be used: {' '.join(str(error).split())}") from error

    def _read(self) -> None:
        content = read(self.files, self.path)
        if content is None:
            return
        try:
            held = json.loads(content)
        except ValueError as error:
            raise ConfigError(f"{self.path} is damaged ({error}): take another name, or remove its folder") from error
        for key in (*held["settings"], *self.settings):
            before, wanted = held["settings"].get(key), self.settings.get(key)
            if before != wanted:
                raise ConfigError(
                    f"the sweep in {self.folder} was started with {key}={before}, now it is {wanted}: take another name, or "
                    "the settings it was started with"
                )
        self.run_id, self.search_seconds = held["run_id"], held["search_seconds"]
        self.found = held.get("found")
        self.trials = [Trial(**trial) for trial in held["trials"]]
        for trial in self.trials:
            if trial.status == "running":  # the driver was killed
                trial.status = "interrupted"

    def write(self) -> None:
        """Keep everything."""
        held = {
            "run_id": self.run_id,
            "search_seconds": self.search_seconds,
            "found": self.found,
            "settings": self.settings,
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }
        put(self.files, self.path, json.dumps(held, indent=1) + "\n")

    def add(self, trial: Trial) -> Trial:
        """One more trial."""
        self.trials.append(trial)
        self.write()
        return trial

    def of(self, stage: str, *statuses: Status) -> list[Trial]:
        """Trials of a stage, with one of some statuses if any are named."""
        return [trial for trial in self.trials if trial.stage == stage and (not statuses or trial.status in statuses)]
