"""What is checked before anything long begins: each refusal is one line that names the setting and what would be right."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from proxscore.config import Config, ConfigError, MethodSection, TrainingConfig
from proxscore.tasks import Task
from proxscore.terminal import say
from proxscore.training.preflight.memory import Memory, UncountableError, readable
from proxscore.training.preflight.preflight import Preflight


def check_disk(preflight: Preflight, methods: list[MethodSection]) -> None:
    """Check that a local storage has room for the checkpoints that are kept, the newest, and one that is being written.

    Raises:
        ConfigError: it has not.
    """
    config = preflight.config
    storage = config.training.storage
    if "://" in storage:
        return
    place = next(folder for folder in (Path(storage), *Path(storage).parents) if folder.exists())
    kept = config.training.keep_checkpoints + 2
    try:
        needed = sum(kept * preflight.memory(method).checkpoint for method in methods)
    except UncountableError as reason:
        say(f"disk and memory are not checked: {reason}")
        return
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ConfigError(
            f"training.storage {storage}: training.keep_checkpoints={config.training.keep_checkpoints}, the newest and one "
            f"being written take {readable(needed)}, {readable(free)} are free: keep fewer, or store them elsewhere"
        )


def check_memory(
    preflight: Preflight, method: MethodSection, free: float, where: str, training: TrainingConfig | None = None
) -> None:
    """Check that a worker's weights, state and activations fit into so many bytes.

    Args:
        where: the bytes are, for the message.
        training: another arrangement of workers than the job's.

    Raises:
        ConfigError: they do not.
    """
    try:
        counted = preflight.memory(method, training)
    except UncountableError:  # said with the disk
        return
    config = preflight.config
    if training is not None:
        config = config.model_copy(update={"training": training})
    check_fits(config, method, counted, free, where)


def check_fits(config: Config, method: MethodSection, counted: Memory, free: float, where: str) -> None:
    """Check that what was counted for a worker fits into so many bytes; see :func:`check_memory`.

    Raises:
        ConfigError: it does not.
    """
    if counted.total > free:
        raise ConfigError(f"{method.kind}: {_needs(config, counted)}; {where} has {readable(free)}: {_remedy(config)}")


def check_gpu(
    config: Config, method: MethodSection, task: Task, device: torch.device, counted: Memory | None = None
) -> None:
    """Check, in the process that trains, that a worker fits into what its GPU has free; a CPU was checked before.

    Args:
        counted: what a worker holds; none: it is counted here, if it can be.

    Raises:
        ConfigError: it does not.
    """
    if device.type != "cuda":
        return
    counted = counted or Preflight(config, task).countable(method)
    if counted is not None:
        check_fits(config, method, counted, free_memory(device), "this GPU")


def _needs(config: Config, counted: Memory) -> str:
    return (
        f"a worker needs {readable(counted.total)} (weights, gradients and state {readable(sum(counted.held.values()))}, "
        f"activations about {readable(counted.activations)}) at training.workers={config.training.workers}, "
        f"training.batch_size={config.training.batch_size}, training.accumulate={config.training.accumulate}"
    )


def _remedy(config: Config) -> str:
    options = ["more workers", "a larger training.accumulate", "a smaller batch"]
    if not config.training.activation_checkpointing:
        options.append("training.activation_checkpointing=true")
    return "use " + ", ".join(options[:-1]) + " or " + options[-1]


def free_memory(device: torch.device) -> float:
    """Measure how many bytes a process may still take on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def example_losses(module: torch.nn.Module, task: Task) -> Iterator[torch.Tensor]:
    """Yield the loss of the first two training rows, for a method that looks at data, before the run has read any."""
    inputs, targets = task.data.train.__getitems__([0, 1])
    yield task.likelihood.nll(module(inputs), targets).mean()
