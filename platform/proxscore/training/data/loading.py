"""Reading rows in loader processes, whose refusals and remarks reach the run as they were."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from proxscore.config import ConfigError
from proxscore.training.data.micro_batches import Batch
from proxscore.vision.decoding import UnreadableError, leave_out, told

MOST_DECODERS = 8
TRAINING_DECODERS = 2  # of a worker, beside the network that computes


def decoders(dataset: Dataset, batches: int) -> int:
    """Say how many processes load one pass: as many as this process has threads, where there is something to decode."""
    if not getattr(dataset, "decodes", False) or batches < 2 or multiprocessing.current_process().daemon:
        return 0
    return min(torch.get_num_threads(), MOST_DECODERS, batches)


def training_loaders(dataset: Dataset, setting: int | None) -> int:
    """Say how many processes load a worker's training rows: as set, or one or two where there is something to decode.

    Args:
        setting: ``training.loader_processes``; none: as the data need it.
    """
    if setting is not None:
        return setting
    if not getattr(dataset, "decodes", False) or multiprocessing.current_process().daemon:
        return 0
    return min(torch.get_num_threads(), TRAINING_DECODERS)


@dataclass
class Loaded:
    """A batch that a loader process has read, or why it could not; and what it left out as unreadable."""

    read: Batch | ConfigError
    left_out: list[UnreadableError]

    def batch(self) -> Batch:
        """Give the batch, after what was left out of it has been said in this process.

        Raises:
            ConfigError: the one that the process met, as it was: a DataLoader would wrap it into a traceback.
        """
        for error in self.left_out:
            leave_out(error)
        if isinstance(self.read, ConfigError):
            raise self.read
        return self.read

    def pin_memory(self) -> Loaded:
        """Copy the batch into pinned memory; a DataLoader calls a method of this name."""
        if isinstance(self.read, ConfigError):
            return self
        inputs, targets = self.read
        return Loaded((inputs.pin_memory(), targets.pin_memory()), self.left_out)


class Readable(Dataset[Loaded]):
    """A data set whose refusals can leave the process that reads it."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> Loaded:
        try:
            read = self._dataset.__getitems__(indices)  # type: ignore[attr-defined]
        except ConfigError as error:
            read = error.with_traceback(None)
        return Loaded(read, told())


def as_it_is(batch: Any) -> Any:
    """A batch that the data set has stacked. Loader processes are sent this function, so it has a name."""
    return batch
