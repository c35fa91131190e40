"""Which steps a run consists of, and where among them something is due."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from proxscore.methods import RunLength
from proxscore.tasks import Task
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.micro_batches import Batch
from proxscore.training.data.streamed import RayTrainingData


def run_length(steps_per_epoch: int, epochs: float, task: Task) -> RunLength:
    """Turn epochs into the length of a run, in steps; it is one step at least."""
    return RunLength(max(round(epochs * steps_per_epoch), 1), steps_per_epoch, len(task.data.train))


def step_at(fraction: float, length: RunLength) -> int:
    """Find the step at which a fraction of the run is over: where a schedule's multipliers change."""
    return min(max(math.ceil(fraction * length.total_steps - 1e-6), 1), length.total_steps)


def milestones(epochs: float, length: RunLength) -> range:
    """List the steps at which every so many epochs end."""
    interval = max(round(epochs * length.steps_per_epoch), 1)
    return range(interval, length.total_steps + 1, interval)


def batches(
    data: TrainingData | RayTrainingData, progress: dict[str, Any], length: RunLength, ranks: int, stop: int
) -> Iterator[tuple[list[Batch], int]]:
    """Yield training batches from the progress's step on to the step ``stop``, epoch by epoch.

    Writes the number of ranks that an epoch is begun with into ``progress["lanes"]``: its order depends on it to its end.

    Args:
        ranks: that share a batch now.
    """
    step = progress["step"]
    while step < stop:
        epoch, start = divmod(step, length.steps_per_epoch)
        if start == 0:
            progress["lanes"] = ranks
        for batch in data.epoch(epoch, start, progress["lanes"]):
            yield batch
            step += 1
            if step == stop:
                return
