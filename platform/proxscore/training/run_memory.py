"""What a storage remembers of a run: the settings that it was started with, its MLflow run, and what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray.train

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, MethodSection
from proxscore.storage import UNREACHABLE, exists, filesystem, put, read
from proxscore.training.ray.trainer import local_folder
from proxscore.training.results import Outcome

FINISHED = "finished.json"  # beside run.json: what a finished run left


class RunMemory:
    """Reads and writes ``run.json`` beside a run's checkpoints, with what it was started with, and its MLflow run.

    Args:
        storage: a folder or a URI.
        label: of the run.

    Raises:
        ConfigError: the storage cannot be reached or written.
    """

    def __init__(self, storage: str, label: str) -> None:
        try:
            self.folder = f"{storage.rstrip('/')}/{label}"
            self.files, root = filesystem(storage)
            self.root = f"{root.rstrip('/')}/{label}"
            self.path = f"{self.root}/run.json"
            self.files.get_file_info(self.path)
        except UNREACHABLE as error:
            raise ConfigError(
                f"training.storage {storage}: cannot be written: {' '.join(str(error).split())}"
            ) from error

    def beside(self, name: str) -> str:
        """Give the path or URI of a file beside ``run.json``."""
        return f"{self.folder}/{name}"

    def read(self, config: Config, method: MethodSection, epochs: float) -> str | None:
        """Look up the MLflow run to continue, if there is one.

        Raises:
            ConfigError: the run was started with settings that its checkpoints do not fit; names the first.
        """
        content = read(self.files, self.path)
        if content is None:
            return None
        try:
            memory = json.loads(content)
        except ValueError as error:
            raise ConfigError(f"{self.path} is damaged ({error}): take another name, or remove its folder") from error
        now = self._settings(config, method, epochs)
        for key in (*memory["settings"], *now):
            if key == "task.baselines":  # they are beside what is trained
                continue
            before, wanted = memory["settings"].get(key), now.get(key)
            new = key not in memory["settings"] and wanted in (None, [], {})  # of a later version, and not used
            if before != wanted and not new:
                raise ConfigError(
                    f"run {config.name!r} in {config.training.storage} was started with {key}={before}, now it is {wanted}: "
                    "take another name, or the settings it was started with"
                )
        return memory["run_id"]

    def write(self, config: Config, method: MethodSection, epochs: float, run_id: str) -> None:
        """Remember the settings of this run, and its MLflow run."""
        memory = {"run_id": run_id, "settings": self._settings(config, method, epochs)}
        self.files.create_dir(self.root, recursive=True)
        put(self.files, self.path, json.dumps(memory, indent=2) + "\n")

    def finish(self, config: Config, outcome: Outcome, checkpoint: str) -> None:
        """Remember what the run left when it was finished.

        Args:
            checkpoint: the last one's name below the run's folder.
        """
        left = {
            "run_id": outcome.run_id,
            "checkpoint": checkpoint,
            "headline": outcome.headline,
            "evaluation": configuration.flatten(config.evaluation),
            "baselines": _baselines(config),
            "results": outcome.results,
        }
        put(self.files, f"{self.root}/{FINISHED}", json.dumps(left, indent=2) + "\n")

    def outcome(self, config: Config, method: MethodSection) -> Outcome | None:
        """Look up what :meth:`finish` remembered.

        Raises:
            ConfigError: the results are those of other settings of the evaluation, or beside other baselines.
        """
        content = read(self.files, f"{self.root}/{FINISHED}")
        if content is None:
            return None
        left = json.loads(content)
        place = f"{self.root}/{left['checkpoint']}"
        if not exists(self.files, f"{place}/posterior/posterior.json"):
            return None
        for key, now in configuration.flatten(config.evaluation).items():
            if key in left["evaluation"] and left["evaluation"][key] != now:
                raise ConfigError(
                    f"run {config.name!r} is finished, with evaluation.{key}={left['evaluation'][key]}, now it is {now}: "
                    "jobs/evaluate.py judges its posterior anew; or take another name"
                )
        if (named := left.get("baselines")) != _baselines(config) and "baselines" in left:
            raise ConfigError(
                f"run {config.name!r} is finished, with task.baselines={named}, now it is {_baselines(config)}: take another name"
            )
        folder = local_folder(ray.train.Checkpoint(place, filesystem=self.files))
        label = Path(self.root).name
        return Outcome(label, method.kind, left["run_id"], left["results"], folder, tuple(left["headline"]))

    @staticmethod
    def _settings(config: Config, method: MethodSection, epochs: float) -> dict[str, Any]:
        settings = {f"task.{key}": value for key, value in configuration.flatten(config.task).items()}
        settings.pop("task.data.unreadable", None)  # a run that a damaged image has ended may go on without it
        settings |= {f"method.{key}": value for key, value in configuration.flatten(method).items()}
        training = config.training
        return settings | {"seed": config.seed, "epochs": epochs, "training.batch_size": training.batch_size}


def _baselines(config: Config) -> list[str] | None:
    """The baselines that the task names, if it has any to name."""
    return getattr(config.task, "baselines", None)
