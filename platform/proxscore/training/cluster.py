"""Ray: connect to a cluster or start a local one, check that it can hold the run, and run the loop on its workers."""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="arg-type,call-arg,list-item,attr-defined"

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution import context as execution_context
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from proxscore.config import Config, ConfigError, DivergedError, MethodSection, masked
from proxscore.storage import filesystem
from proxscore.tracking import Recorder

if TYPE_CHECKING:  # what only workers use takes seconds to import: not in every process of a cluster
    from proxscore.tasks import Task
    from proxscore.training.context import RayContext

DASHBOARD = "RAY_API_SERVER_ADDRESS"
FINAL = (ConfigError, DivergedError, FloatingPointError)  # errors that another attempt cannot mend


@contextmanager
def connected(config: Config, *, log: bool = True) -> Iterator[None]:
    """A connection to the cluster at ``RAY_ADDRESS`` (or that a job runs on), else to a new local one.

    Args:
        log: show what its processes print.

    Raises:
        ConfigError: the cluster can never place the workers.
    """
    # The controller takes one report of each worker whenever it polls them; at Ray's default of 2 s, workers wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if config.training.min_workers is not None:  # a group for a node that has just been lost is given up sooner
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    ours = not ray.is_initialized()
    with _started(log) if ours else nullcontext():
        check_resources(config)
        yield


@contextmanager
def _started(log: bool) -> Iterator[None]:
    """A connection, within the context. A new cluster's processes know its dashboard.

    What clears up after a run whose driver was stopped (a trial's) asks the dashboard who is alive. It looks for the cluster on
    this machine, and gives up if there are several.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    new = address == "local" and DASHBOARD not in os.environ
    port = _free_port()
    if new:
        os.environ[DASHBOARD] = f"http://127.0.0.1:{port}"
    try:
        where = {"address": "local", "dashboard_port": port} if new else {}
        ray.init(logging_level=logging.WARNING, log_to_driver=log, **where)
        yield
    finally:
        ray.shutdown()
        if new:
            del os.environ[DASHBOARD]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def use_gpu(config: Config) -> bool:
    """Whether workers get a GPU each: as configured; ``auto`` if the cluster has (or can grow) enough of them."""
    if config.training.device != "auto":
        return config.training.device == "cuda"
    return capacity().get("GPU", 0) >= least(config)


def least(config: Config) -> int:
    """Workers without which training waits."""
    return config.training.min_workers or config.training.workers


def capacity() -> dict[str, float]:
    """The most that the cluster can ever hold: what it has, or what its autoscaler may add."""
    now = ray.cluster_resources()
    later = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(now.get(name, 0), later.get(name, 0)) for name in {*now, *later}}


def check_resources(config: Config) -> None:
    """Refuse what could only hang: more workers, CPUs or GPUs than the cluster can ever place.

    Raises:
        ConfigError: names the setting and what would fit.
    """
    training, available = config.training, capacity()
    cpus, gpus = available.get("CPU", 0), available.get("GPU", 0)
    setting = "training.workers" if training.min_workers is None else "training.min_workers"
    workers = least(config)
    wanted = workers * training.cpus_per_worker
    if wanted > cpus:
        raise ConfigError(
            f"{setting}={workers} at {training.cpus_per_worker:g} CPUs each need {wanted:g} CPUs; the cluster "
            f"can have {cpus:g}: use at most {int(cpus // training.cpus_per_worker)} workers, or fewer cpus_per_worker"
        )
    if training.device == "cuda" and workers > gpus:
        raise ConfigError(f"{setting}={workers} need a GPU each; the cluster can have {gpus:g}")
    most = min(training.workers, int(cpus // training.cpus_per_worker))
    if config.task.data.streamed and cpus - most * training.cpus_per_worker < 1:
        raise ConfigError(
            f"training.workers={training.workers} take all {cpus:g} CPUs and leave none for Ray Data to read "
            f"{config.task.data.kind} with: use training.cpus_per_worker={math.floor(10 * (cpus - 1) / most) / 10 or 0.1:g}"
        )


def check_storage(config: Config) -> None:
    """Every node can write the storage, and what it writes is seen here.

    Raises:
        ConfigError: names the node.
    """
    from proxscore.training import checks

    storage = config.training.storage
    probe = ray.remote(num_cpus=0)(checks.probe_storage)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        name, address = f".probe-{node['NodeID']}", node["NodeManagerAddress"]
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        failure = ray.get(probe.options(scheduling_strategy=place).remote(storage, name))
        if failure is not None:
            raise ConfigError(f"training.storage {storage}: node {address} cannot write it: {failure}")
        if not checks.take_probe(storage, name):
            raise ConfigError(
                f"training.storage {storage}: what node {address} writes there is not seen here; give a place that all "
                "nodes share: a bucket (s3://..., gs://...) or a network file system"
            )


def check_memory(config: Config, methods: list[MethodSection], task: Task) -> None:
    """The nodes that are there can hold the workers on the CPU; on GPUs, workers look for themselves.

    Raises:
        ConfigError: they cannot.
    """
    from proxscore.training import checks

    sizes = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    if use_gpu(config) or capacity().get("memory", 0) > sum(sizes):  # the autoscaler may add nodes
        return
    training = config.training.model_copy(update={"workers": least(config), "min_workers": None})
    for method in methods:
        free = min(max(sizes), sum(sizes) / training.workers)
        checks.check_memory(
            config.model_copy(update={"training": training}), method, task, free, "on this cluster each"
        )


Worker = Callable[[dict[str, Any]], dict[str, Any]]


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to whoever called: Ray's handler waits for its controller, which may wait for the tracking server."""

    def _register_sigint_handler(self, controller: Any) -> None:
        return


def train_on_ray(
    config: Config,
    method: MethodSection,
    epochs: float,
    name: str,
    recorder: Recorder,
    *,
    worker: Worker | None = None,
    settings: dict[str, Any] | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> tuple[dict[str, Any], Any]:
    """Run the loop on the configured workers, resuming the run of this name if there is one.

    Args:
        worker: what each worker runs instead of the whole loop.
        settings: for it, beside the configuration.
        callbacks: of the controller, beside the recorder's.

    Returns:
        The loop's results, and Ray's last checkpoint (posterior and figures among it); see :func:`local`.

    Raises:
        ConfigError: what the loop refused.
        RuntimeError: a worker failed more often than ``training.max_failures``; one line with the first cause.
    """
    training = config.training
    files, folder = filesystem(training.storage)
    payload = {"config": config, "baseline": method is config.baseline, "epochs": epochs}
    trainer = _Trainer(
        worker or _worker,
        train_loop_config=payload | (settings or {}),
        torch_config=TorchConfig(backend="nccl" if use_gpu(config) else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=training.workers if training.min_workers is None else (training.min_workers, training.workers),
            elastic_resize_monitor_interval_s=training.resize_interval,
            use_gpu=use_gpu(config),
            resources_per_worker={"CPU": training.cpus_per_worker} | ({"GPU": 1} if use_gpu(config) else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_filesystem=files,
            storage_path=folder,
            checkpoint_config=CheckpointConfig(
                num_to_keep=training.keep_checkpoints, checkpoint_score_attribute="score", checkpoint_score_order="min"
            ),
            failure_config=FailureConfig(max_failures=training.max_failures),
            callbacks=[RecorderCallback(recorder), *callbacks],
            logging_config=LoggingConfig(log_level="WARNING"),  # its own account of each report drowns the progress
        ),
    )
    main = threading.current_thread() is threading.main_thread()
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, FINAL):
            raise error.controller_failure from None
        raise RuntimeError(f"training failed: {cause(error)}") from error
    finally:
        if main:
            signal.signal(signal.SIGINT, interrupt)  # Ray leaves its own handler, which would abort the finished run
    return result.return_value, result.checkpoint


def _worker(payload: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs."""
    from proxscore.training.loop import train

    config, task, context = place(payload)
    method = config.baseline if payload["baseline"] else config.method
    assert method is not None
    return train(config, method, payload["epochs"], task, context)


def place(payload: dict[str, Any]) -> tuple[Config, Task, RayContext]:
    """The configuration and the task of a worker, and where it runs.

    Raises:
        ConfigError: its GPU has too little memory.
    """
    from proxscore.training import checks
    from proxscore.training.context import RayContext

    # Ray Train prints every report in full; this logger goes by its file's name, which the configured level does not reach.
    logging.getLogger(execution_context.__file__).setLevel(logging.WARNING)
    config: Config = payload["config"]
    method = config.baseline if payload["baseline"] else config.method
    assert method is not None
    context, task = RayContext(config, method), config.task.build(verify=False)
    if context.device.type == "cuda":
        checks.check_memory(config, method, task, checks.free_memory(context.device), "this GPU")
    return config, task, context


class RecorderCallback(UserCallback):
    """Hands the reports of all workers to the recorder, on the controller: it survives the loss of any worker."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.recorder(metrics)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """End the run on an error that another attempt cannot mend: what a callback raises, the controller passes on.

        The worker must not return instead: if it alone is at fault, the others would wait for it in a collective.
        """
        for _, error in sorted(worker_exceptions.items()):
            for kind in FINAL:
                if isinstance(error, kind):
                    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # not also the traceback of this line
                    raise kind(last_line(error)) from None


def cause(error: BaseException) -> str:
    """The first cause of a failed run, in one line."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = min(error.worker_failures.items())
        return f"worker {rank}: {last_line(failure)}"
    return last_line(error)


def last_line(error: BaseException) -> str:
    """What an error says at its end: Ray puts the traceback of the other process before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return masked(lines[-1]) if lines else type(error).__name__


def local(checkpoint: Any) -> Path:
    """A checkpoint's folder on this machine; one on remote storage is copied."""
    if os.path.isdir(checkpoint.path):
        return Path(checkpoint.path)
    folder = tempfile.mkdtemp(prefix="proxscore-")
    return Path(checkpoint.to_directory(folder))
