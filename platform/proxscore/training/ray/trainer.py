"""Ray Train: the loop on the workers of a cluster, and what is said when one of them fails."""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="arg-type,call-arg,list-item,attr-defined"

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from proxscore.config import Config, MethodSection
from proxscore.storage import filesystem
from proxscore.tracking import Recorder
from proxscore.training.ray import cluster, waiting
from proxscore.training.ray.rank import train_rank
from proxscore.training.ray.reports import FINAL, RecorderCallback, last_line

if TYPE_CHECKING:  # what only workers use takes seconds to import: not in every process of a cluster
    from proxscore.training.preflight.memory import Memory

WorkerFunction = Callable[[dict[str, Any]], dict[str, Any]]


class Trainer(TorchTrainer):
    """A trainer that leaves Ctrl-C to its caller: Ray's handler waits for its controller, and that for the tracking server."""

    def _register_sigint_handler(self, controller: Any) -> None:
        return


def train_on_ray(
    config: Config,
    method: MethodSection,
    epochs: float,
    name: str,
    recorder: Recorder,
    *,
    worker: WorkerFunction | None = None,
    settings: dict[str, Any] | None = None,
    callbacks: Sequence[UserCallback] = (),
    counted: Memory | None = None,
    show: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], Any]:
    """Run the loop on the configured workers, resuming the run of this name if there is one.

    Args:
        worker: what each worker runs instead of the whole loop.
        settings: for it, beside the configuration.
        callbacks: of the controller, beside the recorder's.
        counted: what a worker holds; without it, a worker on a GPU counts for itself.
        show: receives lines while workers are waited for; none: nothing is said.

    Returns:
        The loop's results, and Ray's last checkpoint (posterior and figures among it); see :func:`local_folder`.

    Raises:
        ConfigError: what the loop refused.
        RuntimeError: a worker failed more often than ``training.max_failures``; one line with the first cause.
    """
    training = config.training
    files, folder = filesystem(training.storage)
    payload = {
        "config": config,
        "baseline": method is config.baseline,
        "epochs": epochs,
        "counted": counted and asdict(counted),
    }
    trainer = Trainer(
        worker or train_rank,
        train_loop_config=payload | (settings or {}),
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu(config) else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=training.workers if training.min_workers is None else (training.min_workers, training.workers),
            elastic_resize_monitor_interval_s=training.resize_interval,
            use_gpu=cluster.use_gpu(config),
            resources_per_worker=cluster.resources_per_worker(config),
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
    asked = str(training.workers) if training.min_workers is None else f"{training.min_workers} to {training.workers}"
    try:
        with nullcontext() if show is None else waiting.told(name, asked, training.workers, show):
            result = trainer.fit()
    except TrainingFailedError as error:
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, FINAL):
            raise error.controller_failure from None
        raise RuntimeError(f"training failed: {first_cause(error)}") from error
    finally:
        if main:
            signal.signal(signal.SIGINT, interrupt)  # Ray leaves its own handler, which would abort the finished run
    return result.return_value, result.checkpoint


def first_cause(error: BaseException) -> str:
    """Name the first cause of a failed run, in one line."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = min(error.worker_failures.items())
        return f"worker {rank}: {last_line(failure)}"
    return last_line(error)


def local_folder(checkpoint: Any) -> Path:
    """Give a checkpoint's folder on this machine; one on remote storage is copied."""
    if os.path.isdir(checkpoint.path):
        return Path(checkpoint.path)
    folder = tempfile.mkdtemp(prefix="proxscore-")
    return Path(checkpoint.to_directory(folder))
