"""A function on all workers of a Ray Train group, without a run that is recorded or resumed."""

# Ray exports the types of Train V1 and the classes of V2.
# mypy: disable-error-code="arg-type,call-arg,list-item,attr-defined"

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

from pyarrow.fs import FileType
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from proxscore.config import Config
from proxscore.storage import filesystem
from proxscore.training.ray import cluster
from proxscore.training.ray.reports import FINAL, last_line
from proxscore.training.ray.trainer import Trainer, first_cause


class _Final(UserCallback):
    """Ends the group on an error that another attempt cannot mend."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for _, error in sorted(worker_exceptions.items()):
            for kind in FINAL:
                if isinstance(error, kind):
                    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # not also the traceback of this line
                    raise kind(last_line(error)) from None


def on_workers(
    config: Config, function: Callable[[dict[str, Any]], dict[str, Any]], payload: dict[str, Any]
) -> dict[str, Any]:
    """Call a function with a payload on each of ``training.workers`` workers, which form a process group.

    Returns:
        What it returned on the worker of rank 0.

    Raises:
        ConfigError: what a worker refused.
        RuntimeError: a worker failed; one line with the first cause.
    """
    training, gpu = config.training, cluster.use_gpu(config)
    files, folder = filesystem(training.storage)
    name = f"report-{uuid.uuid4().hex[:12]}"
    trainer = Trainer(
        function,
        train_loop_config=payload,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=training.workers,
            use_gpu=gpu,
            resources_per_worker=cluster.resources_per_worker(config),
        ),
        run_config=RunConfig(
            name=name,
            storage_filesystem=files,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=0),
            callbacks=[_Final()],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        found: dict[str, Any] = trainer.fit().return_value
        return found
    except TrainingFailedError as error:
        if isinstance(error, ControllerError) and isinstance(error.controller_failure, FINAL):
            raise error.controller_failure from None
        raise RuntimeError(f"a worker failed: {first_cause(error)}") from error
    finally:
        if files.get_file_info(f"{folder}/{name}").type == FileType.Directory:
            files.delete_dir(f"{folder}/{name}")
