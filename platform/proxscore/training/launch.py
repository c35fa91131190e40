"""The driver of a training job: checks, one tracked run per method, in-process or on a Ray cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, MethodSection
from proxscore.methods import check_running_statistics
from proxscore.terminal import say
from proxscore.tracking import Recorder, TrackedRun, tracking_uri
from proxscore.tracking.datasets import dataset_inputs
from proxscore.tracking.machines import system_metrics
from proxscore.tracking.names import run_name
from proxscore.tracking.runs import check_server, source_tags
from proxscore.tracking.weights import local_weights
from proxscore.training.baselines import KEY as BASELINE
from proxscore.training.baselines import Beside
from proxscore.training.data.norm_rows import check_rows
from proxscore.training.evaluation import package_versions
from proxscore.training.exclusive import exclusive
from proxscore.training.local import torchrun
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train
from proxscore.training.preflight import checks
from proxscore.training.preflight.preflight import Preflight
from proxscore.training.published import describe_run, register_run
from proxscore.training.ray import checks as cluster_checks
from proxscore.training.ray import connection, trainer
from proxscore.training.results import CHOSEN, Outcome, record_results
from proxscore.training.run_memory import RunMemory
from proxscore.training.sharding import meshes
from proxscore.training.worker import pick_device


def run(config: Config, show: Callable[[str], None] = say) -> list[Outcome]:
    """Train the baseline, if there is one, and the method; each is one run under the configured experiment.

    In a process that torchrun started, together with the others; only the first one records and shows, and returns
    outcomes.

    The baseline takes as many gradient evaluations as the method: more epochs, where the method scores several draws per
    step. A name that was used before continues its runs from their last checkpoints.

    Raises:
        ConfigError: a setting or file at fault, before anything is trained.
    """
    config = torchrun.with_process_count(with_absolute_paths(config))
    before = [finished_outcome(config, method, epochs) for method, epochs in methods_with_epochs(config)]
    if all(before):  # no cluster, no data, and nothing that is recorded twice
        show(f"{config.name} is finished: these are its results; another name begins a new run")
        return [outcome for outcome in before if outcome is not None and torchrun.rank() == 0]
    if torchrun.rank() == 0:
        show(f"train      reading the data, building the network: {config.task.data.kind}, {config.task.network}")
    preflight, plan = check_job(config)
    methods = [method for method, _ in plan]
    if torchrun.rank() == 0:
        for line in preflight.task.told:
            show(line)
    alone = _alone(config)
    if torchrun.launched():
        processes: AbstractContextManager[None] = torchrun.process_group(config)
    else:
        processes = connection.connected(config, show) if config.training.workers else nullcontext()
    with ExitStack() as stack:
        if not torchrun.launched():
            stack.enter_context(_exclusive(config, methods))
        stack.enter_context(processes)
        if not alone:
            cluster_checks.check_storage(config)
            cluster_checks.check_memory(preflight, methods)
            preflight.release()
        if torchrun.launched():
            config = torchrun.with_common_name(config)
            stack.enter_context(_exclusive(config, methods if torchrun.rank() == 0 else []))
        beside = Beside(preflight.task, show)
        outcomes = [_run_method(config, method, epochs, preflight, beside, show) for method, epochs in plan]
    return [outcome for outcome in outcomes if outcome is not None]


def _exclusive(config: Config, methods: list[MethodSection]) -> AbstractContextManager[None]:
    return exclusive(config.training.storage, [label_of(config, method) for method in methods])


def check_job(config: Config) -> tuple[Preflight, list[tuple[MethodSection, float]]]:
    """Refuse whatever can be refused before processes join, or a cluster starts.

    Returns:
        What was found out on the way, and the methods to train with their epochs.

    Raises:
        ConfigError: a setting, file or row at fault.
    """
    plan = methods_with_epochs(config)
    task = config.task.build()
    task.check(config)
    for method, _ in plan:
        method.check_likelihood(task.likelihood)
    preflight = Preflight(config, task)
    module = preflight.initial.module
    assert module is not None
    check_running_statistics(config.method, module, config.evaluation.norm_batches)
    meshes.arrangement(config, config.method)
    methods = [method for method, _ in plan]
    if config.training.accumulate > (rows := len(task.data.train)):  # a batch has no more rows than the data
        raise ConfigError(
            f"training.accumulate={config.training.accumulate}: the training data have {rows} rows; use at most that many"
        )
    check_rows(config, methods, module, task)
    _check_this_machine(preflight, methods, alone=_alone(config))
    return preflight, plan


def methods_with_epochs(config: Config) -> list[tuple[MethodSection, float]]:
    """List the methods to train with their epochs: the baseline takes as many gradient evaluations as the method.

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


def _check_this_machine(preflight: Preflight, methods: list[MethodSection], *, alone: bool) -> None:
    """Check disk, memory and tracking server as far as this machine can tell; see :mod:`proxscore.training.preflight.checks`."""
    config = preflight.config
    checks.check_disk(preflight, methods)
    if alone:
        device = torchrun.device(pick_device(config.training.device))
        free = checks.free_memory(device) / torchrun.processes_on(device)
        for method in methods:
            checks.check_memory(preflight, method, free, "a process here")
    if torchrun.rank() == 0:  # one process makes a new database
        assert config.tracking.uri is not None
        check_server(config.tracking.uri)


def _absolute_in(section: configuration.Section) -> configuration.Section:
    return section.model_copy(update={key: value.absolute() for key, value in section if isinstance(value, Path)})


def with_absolute_paths(config: Config) -> Config:
    """Give the configuration a name and absolute paths: workers run in other folders than the driver.

    Weights that MLflow has are downloaded.
    """
    storage = config.training.storage
    if "://" not in storage:
        storage = str(Path(storage).absolute())
    training = config.training.model_copy(update={"storage": storage})
    tracking = config.tracking.model_copy(update={"uri": tracking_uri(config.tracking)})
    assert tracking.uri is not None
    model = config.task.model
    if config.task.weights is not None:
        model = model.model_copy(update={"weights": local_weights(config.task.weights, storage, tracking.uri)})
    sections = {"data": config.task.data, "model": model}
    task = config.task.model_copy(update={key: _absolute_in(section) for key, section in sections.items()})
    name = config.name or f"{config.task.data.kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    return config.model_copy(update={"task": task, "training": training, "tracking": tracking, "name": name})


def label_of(config: Config, method: MethodSection) -> str:
    """Name a method's run, and its folder."""
    return f"{config.name}-{method.kind}"


def _run_method(
    config: Config,
    method: MethodSection,
    epochs: float,
    preflight: Preflight,
    beside: Beside,
    show: Callable[[str], None],
) -> Outcome | None:
    label = label_of(config, method)
    before = finished_outcome(config, method, epochs)
    if before is not None:
        return before if torchrun.rank() == 0 else None
    if torchrun.rank() > 0:
        _train_here(config, method, epochs, preflight, label, lambda payloads: None)
        return None
    uri = config.tracking.uri
    assert uri is not None
    memory = RunMemory(config.training.storage, label)
    earlier = memory.read(config, method, epochs)
    tracked = TrackedRun(uri, config.tracking.experiment, run_name(method.kind, config), earlier)
    memory.write(config, method, epochs, tracked.run_id)
    watched = system_metrics(uri, tracked.run_id) if config.tracking.system_metrics else nullcontext()
    with tracked.running(), watched:
        params = configuration.flatten(config) | {"epochs_trained": epochs}
        params = {key: value for key, value in params.items() if not key.startswith(("method.", "baseline"))}
        params |= {f"chosen.{key}": value for key, value in preflight.task.chosen.items()}
        params |= {f"method.{key}": value for key, value in configuration.flatten(method).items()}
        tags = {f"version.{package}": version for package, version in package_versions().items()} | source_tags()
        tags["name"] = label
        described = preflight.task.describe()
        tracked.datasets(dataset_inputs(described, config.task.data.model_dump(mode="json")))
        described.pop("class_names", None)  # a tag has few characters; the posterior has them all
        tags["data.splits"] = json.dumps(described)
        tracked.describe(params, tags)
        if tracked.run_id != earlier:  # a continued run keeps its own
            tracked.text(configuration.dump(config.model_copy(update={"name": None})), "config.yaml")
        # In the process that trains, or in that of Ray's controller, whose lines come here.
        here = config.training.workers == 0 or torchrun.launched()
        kept = memory.beside("undelivered.json")
        recorder = Recorder(uri, tracked.run_id, label, show if here else say, kept=kept)
        started = time.perf_counter()
        if here:
            results, final = _train_here(config, method, epochs, preflight, label, recorder)
            name = f"{final.parent.name}/{final.name}"
        else:
            results, checkpoint = trainer.train_on_ray(
                config, method, epochs, label, recorder, counted=preflight.countable(method), show=show
            )
            final, name = trainer.local_folder(checkpoint), Path(checkpoint.path).name
        if preflight.task.chosen:
            results[CHOSEN] = dict(preflight.task.chosen)
        results["seconds_total"] = time.perf_counter() - started
        if beside.best is not None:
            results[BASELINE] = beside.best.to_json()
        model_id = record_results(tracked, results, final, config.tracking.log_model)
        headline = tuple(preflight.task.evaluator.headline)
        text = describe_run(tracked, config, method, results, headline, model_id)
        registered = register_run(tracked, config, results, model_id, text) if method is config.method else None
        if registered is not None:
            show(f"registered {registered}")
    outcome = Outcome(label, method.kind, tracked.run_id, results, final, headline)
    memory.finish(config, outcome, name)
    return outcome


def finished_outcome(config: Config, method: MethodSection, epochs: float) -> Outcome | None:
    """Look up what a method's run left when it was finished before; none: it was not, or its last checkpoint is gone.

    Raises:
        ConfigError: it was finished with other settings; names the first.
    """
    memory = RunMemory(config.training.storage, label_of(config, method))
    memory.read(config, method, epochs)
    return memory.outcome(config, method)


def _train_here(
    config: Config,
    method: MethodSection,
    epochs: float,
    preflight: Preflight,
    label: str,
    sink: Callable[[list[dict[str, Any]]], None],
) -> tuple[dict[str, Any], Path]:
    folder, device, arrangement = Path(config.training.storage) / label, pick_device(config.training.device), None
    if torchrun.launched():
        device = torchrun.device(device)
        arrangement = meshes.build_meshes(config, method, device.type, config.training.workers)
    with LocalWorker(folder, device, sink, config.training.keep_checkpoints, arrangement) as worker:
        results = train(config, method, epochs, preflight.task, worker, preflight.initial)
    return results, worker.folders()[-1]
