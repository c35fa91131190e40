"""Batches for a rank: the same global batches whatever the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]


class GlobalBatches:
    """Indices of a rank's part of every global batch.

    Training order is a permutation by (seed, epoch), the same on all ranks; rank r takes every world-th row of a global
    batch from its r-th on. Iterating yields one list of indices per batch.

    Args:
        rows: number of rows N of the data set.
        batch_size: rows of a global batch B; the last one of an epoch may be smaller.
        shuffle_seed: of the permutation; none keeps the rows' order (evaluation).
    """

    def __init__(self, rows: int, batch_size: int, rank: int, world: int, shuffle_seed: int | None = None) -> None:
        self.rows, self.batch_size, self.rank, self.world, self.shuffle_seed = (
            rows,
            batch_size,
            rank,
            world,
            shuffle_seed,
        )
        self.epoch = self.start = 0

    def sizes(self) -> list[int]:
        """Rows of each global batch. In training, a last batch that cannot give every rank a row is left out."""
        sizes = [min(self.batch_size, self.rows - first) for first in range(0, self.rows, self.batch_size)]
        if self.shuffle_seed is not None and len(sizes) > 1 and sizes[-1] < self.world:
            sizes.pop()
        return sizes

    def __len__(self) -> int:
        return len(self.sizes()) - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order: Sequence[int] = range(self.rows)
        if self.shuffle_seed is not None:
            generator = torch.Generator().manual_seed(self.shuffle_seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.rows, generator=generator).tolist()
        for number, size in enumerate(self.sizes()):
            if number >= self.start:
                first = number * self.batch_size
                yield list(order[first + self.rank : first + size : self.world])


class TrainingData:
    """The training rows of a map-style data set, in seeded global batches cut into micro-batches.

    Args:
        dataset: items by ``__getitems__`` (a list of indices to stacked tensors).
        accumulate: micro-batches that a rank's part of a global batch is cut into.
        processes: loader processes per rank.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        accumulate: int = 1,
        processes: int = 0,
    ) -> None:
        self._batches = GlobalBatches(len(dataset), batch_size, rank, world, seed)  # type: ignore[arg-type]
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            num_workers=processes,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
        )
        self.accumulate = accumulate
        self.steps_per_epoch = len(self._batches.sizes())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[list[Batch], int]]:
        """(this rank's micro-batches, rows of the global batch) from batch number ``start`` of an epoch on."""
        self._batches.epoch, self._batches.start = epoch, start
        for (inputs, targets), size in zip(self._loader, self._batches.sizes()[start:], strict=True):
            yield _micro(inputs, targets, self.accumulate), size


class RayTrainingData:
    """The training rows of this worker's Ray Data shard (``ray.train.get_dataset_shard("train")``).

    Ray gives all workers equally many rows; a few may be left out of an epoch to make that so.

    Args:
        shard: the iterator that Ray Train hands out, with columns image and label.
        rows: rows of the whole data set.
    """

    def __init__(self, shard: Any, rows: int, batch_size: int, world: int, seed: int, accumulate: int = 1) -> None:
        self._shard, self._world, self._seed, self.accumulate = shard, world, seed, accumulate
        self._local = max(batch_size // world, 1)
        self.steps_per_epoch = max(math.floor(rows / world / self._local), 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[list[Batch], int]]:
        """As :meth:`TrainingData.epoch`; the rows of an interrupted epoch are drawn in a new order."""
        batches = self._shard.iter_torch_batches(
            batch_size=self._local,
            drop_last=True,
            local_shuffle_buffer_size=16 * self._local,
            local_shuffle_seed=self._seed * 1_000_003 + epoch,
        )
        for number, batch in enumerate(batches):
            if start <= number < self.steps_per_epoch:
                yield _micro(batch["image"], batch["label"], self.accumulate), self._local * self._world


def evaluation_batches(dataset: Dataset, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
    """This rank's rows of a data set, in order.

    All ranks yield equally many batches: one that has no row left repeats an input without a target, as padding.
    """
    for indices in GlobalBatches(len(dataset), batch_size, rank, world):  # type: ignore[arg-type]
        inputs, targets = dataset.__getitems__(indices or [0])  # type: ignore[attr-defined]
        yield inputs, targets[: len(indices)]


def _as_it_is(batch: Any) -> Any:
    """A batch that the data set has stacked. Loader processes are sent this function, so it has a name."""
    return batch


def _micro(inputs: Tensor, targets: Tensor, count: int) -> list[Batch]:
    return list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))
