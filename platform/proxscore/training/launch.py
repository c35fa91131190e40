"""The driver of a training job: checks, one tracked run per method, in-process or on a Ray cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, MethodSection
from proxscore.methods import check_running_statistics
from proxscore.posterior.convergence import KEY as VERDICT
from proxscore.posterior.convergence import Verdict
from proxscore.storage import UNREACHABLE, exists, filesystem, put, read, write
from proxscore.tasks import Task
from proxscore.tracking import Recorder, TrackedRun, say, tracking_uri
from proxscore.tracking.runs import check_server, git_tags
from proxscore.training.data.norm_rows import check_rows
from proxscore.training.evaluation import package_versions
from proxscore.training.exclusive import exclusive
from proxscore.training.local import torchrun
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.training.preflight import checks
from proxscore.training.ray import checks as cluster_checks
from proxscore.training.ray import connection, trainer
from proxscore.training.sharding import meshes
from proxscore.training.worker import pick_device

FINISHED = "finished.json"  # beside run.json: what a finished run left


@dataclass
class Outcome:
    """What one method's run left.

    Attributes:
        label: the run's name.
        kind: of the method.
        run_id: in MLflow.
        results: as the loop returned them.
        folder: holds ``posterior`` and ``figures``.
        headline: metrics of the task that are shown first.
    """

    label: str
    kind: str
    run_id: str
    results: dict[str, Any]
    folder: Path
    headline: tuple[str, ...]


def run(config: Config, show: Callable[[str], None] = say) -> list[Outcome]:
    """Train the baseline, if there is one, and the method; each is one run under the configured experiment.

    In a process that torchrun started, together with the others; only the first one records and shows, and returns
    outcomes.

    The baseline takes as many gradient evaluations as the method: more epochs, where the method scores several draws per
    step. A name that was used before continues its runs from their last checkpoints.

    Raises:
        ConfigError: a setting or file at fault, before anything is trained.
    """
    config = torchrun.counted(absolute(config))
    before = [finished(config, method, epochs) for method, epochs in plan_of(config)]
    if all(before):  # no cluster, no data, and nothing that is recorded twice
        show(f"{config.name} is finished: these are its results; another name begins a new run")
        return [outcome for outcome in before if outcome is not None and torchrun.rank() == 0]
    task, plan = ready(config)
    methods = [method for method, _ in plan]
    alone = _alone(config)
    if torchrun.launched():
        place: AbstractContextManager[None] = torchrun.group(config)
    else:
        place = connection.connected(config) if config.training.workers else nullcontext()
    with ExitStack() as stack:
        if not torchrun.launched():
            stack.enter_context(_exclusive(config, methods))
        stack.enter_context(place)
        if not alone:
            cluster_checks.check_storage(config)
            cluster_checks.check_memory(config, methods, task)
        if torchrun.launched():
            config = torchrun.named(config)
            stack.enter_context(_exclusive(config, methods if torchrun.rank() == 0 else []))
        outcomes = [_run_method(config, method, epochs, task, show) for method, epochs in plan]
    return [outcome for outcome in outcomes if outcome is not None]


def _exclusive(config: Config, methods: list[MethodSection]) -> AbstractContextManager[None]:
    return exclusive(config.training.storage, [label_of(config, method) for method in methods])


def ready(config: Config) -> tuple[Task, list[tuple[MethodSection, float]]]:
    """Everything that can be refused before processes join, or a cluster starts.

    Returns:
        The task, and the methods to train with their epochs.

    Raises:
        ConfigError: a setting, file or row at fault.
    """
    plan = plan_of(config)
    task = config.task.build()
    task.check(config)
    for method, _ in plan:
        method.check_likelihood(task.likelihood)
    module = task.build_model(torch.device("meta") if config.training.meta_init else None)
    check_running_statistics(config.method, module, config.evaluation.norm_batches)
    meshes.shape(config, config.method)
    methods = [method for method, _ in plan]
    if config.training.accumulate > (rows := len(task.data.train)):  # a batch has no more rows than the data
        raise ConfigError(
            f"training.accumulate={config.training.accumulate}: the training data have {rows} rows; use at most that many"
        )
    check_rows(config, methods, module, task)
    _check_this_machine(config, methods, task, alone=_alone(config))
    return task, plan


def plan_of(config: Config) -> list[tuple[MethodSection, float]]:
    """The methods to train, with their epochs: the baseline has as many gradient evaluations.

    Raises:
        ConfigError: a storage that these processes cannot use.
    """
    if _alone(config) and "://" in config.training.storage:
        raise ConfigError(
            f"training.storage {config.training.storage}: without Ray's workers it must be a local folder"
        )
    plan = [(config.method, config.training.epochs)]
    if config.baseline is not None:
        plan.insert(0, (config.baseline, config.training.epochs * config.method.evaluations_per_step()))
    return plan


def _alone(config: Config) -> bool:
    """Whether this process trains, without Ray's workers."""
    return torchrun.launched() or config.training.workers == 0


def _check_this_machine(config: Config, methods: list[MethodSection], task: Task, *, alone: bool) -> None:
    """Disk, memory and tracking server, as far as this machine can tell; see :mod:`proxscore.training.preflight.checks`."""
    checks.check_disk(config, methods, task)
    if alone:
        device = torchrun.device(pick_device(config.training.device))
        free = checks.free_memory(device) / torchrun.on_device(device)
        for method in methods:
            checks.check_memory(config, method, task, free, "a process here")
    if torchrun.rank() == 0:  # one process makes a new database
        assert config.tracking.uri is not None
        check_server(config.tracking.uri)


def _with_absolute_paths(section: configuration.Section) -> configuration.Section:
    return section.model_copy(update={key: value.absolute() for key, value in section if isinstance(value, Path)})


def absolute(config: Config) -> Config:
    """The same configuration with a name and absolute paths: workers run in other folders than the driver."""
    data, model = config.task.data, config.task.model
    task = config.task.model_copy(update={"data": _with_absolute_paths(data), "model": _with_absolute_paths(model)})
    storage = config.training.storage
    if "://" not in storage:
        storage = str(Path(storage).absolute())
    training = config.training.model_copy(update={"storage": storage})
    tracking = config.tracking.model_copy(update={"uri": tracking_uri(config.tracking)})
    name = config.name or f"{data.kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    return config.model_copy(update={"task": task, "training": training, "tracking": tracking, "name": name})


def label_of(config: Config, method: MethodSection) -> str:
    """What a method's run is called; also its folder."""
    return f"{config.name}-{method.kind}"


def _run_method(
    config: Config, method: MethodSection, epochs: float, task: Task, show: Callable[[str], None]
) -> Outcome | None:
    label = label_of(config, method)
    before = finished(config, method, epochs)
    if before is not None:
        return before if torchrun.rank() == 0 else None
    if torchrun.rank() > 0:
        _train_here(config, method, epochs, task, label, lambda payloads: None)
        return None
    uri = config.tracking.uri
    assert uri is not None
    memory = RunMemory(config.training.storage, label)
    earlier = memory.read(config, method, epochs)
    tracked = TrackedRun(uri, config.tracking.experiment, label, earlier)
    memory.write(config, method, epochs, tracked.run_id)
    with tracked.running():
        params = configuration.flatten(config) | {"epochs_trained": epochs}
        params = {key: value for key, value in params.items() if not key.startswith(("method.", "baseline"))}
        params |= {f"method.{key}": value for key, value in configuration.flatten(method).items()}
        tags = {f"version.{package}": version for package, version in package_versions().items()} | git_tags()
        tags["data.splits"] = json.dumps(task.describe())
        tracked.describe(params, tags)
        if tracked.run_id != earlier:  # a continued run keeps its own
            tracked.text(configuration.dump(config.model_copy(update={"name": None})), "config.yaml")
        recorder = Recorder(uri, tracked.run_id, label, show, kept=memory.beside("undelivered.json"))
        started = time.perf_counter()
        if config.training.workers == 0 or torchrun.launched():
            results, final = _train_here(config, method, epochs, task, label, recorder)
            name = f"{final.parent.name}/{final.name}"
        else:
            results, checkpoint = trainer.train_on_ray(config, method, epochs, label, recorder)
            final, name = trainer.local(checkpoint), Path(checkpoint.path).name
        results["seconds_total"] = time.perf_counter() - started
        keep(tracked, results, final)
    outcome = Outcome(label, method.kind, tracked.run_id, results, final, tuple(task.judge.headline))
    memory.finish(config, outcome, name)
    return outcome


def finished(config: Config, method: MethodSection, epochs: float) -> Outcome | None:
    """What a method's run left when it was finished before; none: it was not, or its last checkpoint is gone.

    Raises:
        ConfigError: it was finished with other settings; names the first.
    """
    memory = RunMemory(config.training.storage, label_of(config, method))
    memory.read(config, method, epochs)
    return memory.outcome(config, method)


def keep(tracked: TrackedRun, results: dict[str, Any], final: Path) -> None:
    """Record the results of a run, as the loop returned them, and what its last checkpoint holds for people."""
    for variant, metrics in results["test"].items():
        prefix = "test" if variant in ("posterior", "point") else f"test_{variant}"
        tracked.metrics({f"{prefix}/{name}": value for name, value in metrics.items()})
    for shift, found in results["shifted"].items():
        for variant, metrics in found.items():
            prefix = shift if variant in ("posterior", "point") else f"{shift}_{variant}"
            tracked.metrics({f"{prefix}/{name}": value for name, value in metrics.items()})
    if "mixture_weights" in results:
        tracked.describe({}, {"mixture.weights": json.dumps(results["mixture_weights"])})
    if (lowest := results.get("validation")) is not None:
        tracked.metrics({"validation/lowest_nll": lowest["nll"], "validation/lowest_epoch": lowest["epoch"]})
    if (verdict := Verdict.of_json(results.get(VERDICT))) is not None:
        keep_verdict(tracked, verdict)
    tracked.metrics({"parameters": results["parameters"], "gradient_evaluations": results["evaluations"]})
    tracked.artifacts(final / "figures", "figures")
    tracked.artifacts(final / "posterior", "posterior")
    write(final / "results.json", json.dumps(results, indent=2) + "\n")


def keep_verdict(tracked: TrackedRun, verdict: Verdict) -> None:
    """Record what training found of its convergence: tag ``verdict`` (its answer), why, and the numbers behind it."""
    tracked.describe({}, {"verdict": verdict.answer, "verdict.lines": " | ".join(verdict.lines())[:5000]})
    tracked.metrics({f"verdict/{name}": value for name, value in verdict.metrics.items()})


def _train_here(
    config: Config,
    method: MethodSection,
    epochs: float,
    task: Task,
    label: str,
    sink: Callable[[list[dict[str, Any]]], None],
) -> tuple[dict[str, Any], Path]:
    folder, device, arrangement = Path(config.training.storage) / label, pick_device(config.training.device), None
    if torchrun.launched():
        device = torchrun.device(device)
        arrangement = meshes.build(config, method, device.type, config.training.workers)
    worker = LocalWorker(folder, device, sink, config.training.keep_checkpoints, arrangement)
    results = train(config, method, epochs, task, worker)
    return results, worker.folders()[-1]


class RunMemory:
    """``run.json`` beside a run's checkpoints: what it was started with, and its MLflow run.

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
        """The path or URI of a file beside ``run.json``."""
        return f"{self.folder}/{name}"

    def read(self, config: Config, method: MethodSection, epochs: float) -> str | None:
        """The MLflow run to continue, if there is one.

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
            before, wanted = memory["settings"].get(key), now.get(key)
            new = key not in memory["settings"] and wanted in (None, [], {})  # of a later version, and not used
            if before != wanted and not new:
                raise ConfigError(
                    f"run {config.name!r} in {config.training.storage} was started with {key}={before}, now it is {wanted}: "
                    "take another name, or the settings it was started with"
                )
        return memory["run_id"]

    def write(self, config: Config, method: MethodSection, epochs: float, run_id: str) -> None:
        """Remember this run."""
        memory = {"run_id": run_id, "settings": self._settings(config, method, epochs)}
        self.files.create_dir(self.root, recursive=True)
        put(self.files, self.path, json.dumps(memory, indent=2) + "\n")

    def finish(self, config: Config, outcome: Outcome, checkpoint: str) -> None:
        """Remember what the run left.

        Args:
            checkpoint: the last one's name below the run's folder.
        """
        left = {
            "run_id": outcome.run_id,
            "checkpoint": checkpoint,
            "headline": outcome.headline,
            "evaluation": configuration.flatten(config.evaluation),
            "results": outcome.results,
        }
        put(self.files, f"{self.root}/{FINISHED}", json.dumps(left, indent=2) + "\n")

    def outcome(self, config: Config, method: MethodSection) -> Outcome | None:
        """What :meth:`finish` remembered.

        Raises:
            ConfigError: the results are those of other settings of the evaluation.
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
        folder = trainer.local(ray.train.Checkpoint(place, filesystem=self.files))
        label = Path(self.root).name
        return Outcome(label, method.kind, left["run_id"], left["results"], folder, tuple(left["headline"]))

    @staticmethod
    def _settings(config: Config, method: MethodSection, epochs: float) -> dict[str, Any]:
        settings = {f"task.{key}": value for key, value in configuration.flatten(config.task).items()}
        settings.pop("task.data.unreadable", None)  # a run that a damaged image has ended may go on without it
        settings |= {f"method.{key}": value for key, value in configuration.flatten(method).items()}
        training = config.training
        return settings | {"seed": config.seed, "epochs": epochs, "training.batch_size": training.batch_size}
