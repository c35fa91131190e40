"""Batches for a rank: the same global batches whatever the number of ranks."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from proxscore.config import ConfigError
from proxscore.training.data.stream_order import EpochOrder, batch_sizes
from proxscore.vision.decoding import UnreadableError, leave_out, told
from proxscore.vision.ray_data import Chunk, StreamedRows

Batch = tuple[Tensor, Tensor]


class GlobalBatches:
    """Indices of a rank's part of every global batch.

    Training order is a permutation by (seed, epoch), the same on all ranks; rank r takes every world-th row of a global
    batch from its r-th on. Iterating yields one list of indices per batch; a rank that has no row in one is given the batch's
    first.

    Args:
        rows: number of rows N of the data set.
        batch_size: rows of a global batch B; see :func:`proxscore.training.data.stream_order.batch_sizes`.
        shuffle_seed: of the permutation; none keeps the rows' order (evaluation).
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        rank: int,
        world: int,
        shuffle_seed: int | None = None,
        *,
        even_end: bool = False,
    ) -> None:
        self.rows, self.rank, self.world, self.shuffle_seed = rows, rank, world, shuffle_seed
        self._sizes = batch_sizes(rows, batch_size, even_end=even_end)
        self.epoch = self.start = 0

    def sizes(self) -> list[int]:
        """Rows of each global batch."""
        return self._sizes

    def part(self, size: int) -> int:
        """This rank's rows of a global batch of so many; where there are none, what it reads is padding."""
        return len(range(self.rank, size, self.world))

    def __len__(self) -> int:
        return len(self.sizes()) - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order: Sequence[int] = range(self.rows)
        if self.shuffle_seed is not None:
            generator = torch.Generator().manual_seed(self.shuffle_seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.rows, generator=generator).tolist()
        firsts = itertools.accumulate(self._sizes, initial=0)
        for number, (first, size) in enumerate(zip(firsts, self._sizes, strict=False)):
            if number >= self.start:
                yield list(order[first + self.rank : first + size : self.world] or order[first : first + 1])


class TrainingData:
    """The training rows of a map-style data set, in seeded global batches cut into micro-batches.

    Args:
        dataset: items by ``__getitems__`` (a list of indices to stacked tensors).
        accumulate: micro-batches that a rank's part of a global batch is cut into.
        processes: loader processes per rank.
        least: inputs that a micro-batch has at least; see :mod:`proxscore.training.data.norm_rows`.
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
        least: int = 1,
    ) -> None:
        rows = len(dataset)  # type: ignore[arg-type]
        self._batches = GlobalBatches(rows, batch_size, rank, world, seed, even_end=least > 1)
        self._loader = DataLoader(
            _Told(dataset),
            batch_sampler=self._batches,
            num_workers=processes,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
        )
        self.accumulate, self.least = accumulate, least
        self.steps_per_epoch = len(self._batches.sizes())

    def epoch(self, epoch: int, start: int = 0, lanes: int | None = None) -> Iterator[tuple[list[Batch], int]]:
        """(this rank's micro-batches, rows of the global batch) from batch number ``start`` of an epoch on.

        Of a micro-batch that has fewer targets than inputs, the inputs beyond are padding: no rank sits out a forward pass.

        Args:
            lanes: of no consequence here, where the order does not depend on the number of ranks.
        """
        self._batches.epoch, self._batches.start = epoch, start
        for loaded, size in zip(self._loader, self._batches.sizes()[start:], strict=True):
            inputs, targets = loaded.batch()
            yield _micro(inputs, targets[: self._batches.part(size)], self.accumulate, self.least), size

    def first(self, count: int) -> Iterator[tuple[list[Batch], int]]:
        """The first batches of the first epoch, as :meth:`epoch` gives them, for what looks at data beside training."""
        return itertools.islice(self.epoch(0), count)


class RayTrainingData:
    """The training rows of a data set that Ray Data streams, in seeded global batches cut into micro-batches.

    The order is that of :class:`EpochOrder`: same seed, same lanes, same batches, from whichever batch on.

    Args:
        rows: that this process reads.
        least: as of :class:`TrainingData`.
    """

    def __init__(
        self,
        rows: StreamedRows,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        accumulate: int = 1,
        least: int = 1,
    ) -> None:
        self._rows, self._batch_size, self._rank, self._world, self._seed = rows, batch_size, rank, world, seed
        self._sizes = batch_sizes(int(rows.sizes.sum()), batch_size, even_end=least > 1)
        self.accumulate, self.least = accumulate, least
        self.steps_per_epoch = len(self._sizes)

    def epoch(self, epoch: int, start: int = 0, lanes: int | None = None) -> Iterator[tuple[list[Batch], int]]:
        """As :meth:`TrainingData.epoch`.

        Args:
            lanes: number of ranks that the epoch was begun with; none: as many as there are.
        """
        return self._read(epoch, start, self.steps_per_epoch, lanes or self._world)

    def first(self, count: int) -> Iterator[tuple[list[Batch], int]]:
        """As :meth:`TrainingData.first`. No task reads further: to stop one is to end its process, and to start another."""
        return self._read(0, 0, min(count, self.steps_per_epoch), self._world)

    def _read(self, epoch: int, start: int, stop: int, lanes: int) -> Iterator[tuple[list[Batch], int]]:
        order = EpochOrder(self._rows.sizes, self._batch_size, lanes, self._seed, epoch, self._sizes)
        counts = order.counts(self._rank, self._world)[start:stop]
        segments = [order.rows[positions] for positions in order.positions(self._rank, self._world, start, stop)]
        with closing(self._rows.read(segments)) as chunks:
            for pieces, size in zip(recut(chunks, counts), self._sizes[start:stop], strict=True):
                images = [piece["image"][piece["readable"]] for piece in pieces]
                labels = [piece["label"][piece["readable"]] for piece in pieces]
                inputs = np.concatenate([np.empty((0, *self._rows.shape), np.float32), *images])
                targets = np.concatenate([np.empty(0, np.int64), *labels])
                yield _micro(torch.from_numpy(inputs), torch.from_numpy(targets), self.accumulate, self.least), size
            next(chunks, None)  # there are none; so the last task ends by itself


def recut(chunks: Iterable[Chunk], counts: Iterable[int]) -> Iterator[list[Chunk]]:
    """Chunks of columns, of any lengths, as lists of pieces that have these numbers of rows together."""
    source, held = iter(chunks), 0
    chunk: Chunk = {}
    for count in counts:
        pieces = []
        while count > 0:
            if not held:
                chunk = next(source)
                held = len(chunk["label"])
            pieces.append({name: column[:count] for name, column in chunk.items()})
            chunk = {name: column[count:] for name, column in chunk.items()}
            taken = min(count, held)
            count, held = count - taken, held - taken
        yield pieces


def evaluation_batches(dataset: Dataset, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
    """This rank's rows of a data set, in order, each read once; what is decoded is decoded ahead, by other processes.

    All ranks yield equally many batches: one that has no row left repeats an input without a target, as padding.
    """
    batches = GlobalBatches(len(dataset), batch_size, rank, world)  # type: ignore[arg-type]
    loader = DataLoader(
        _Told(dataset),
        batch_sampler=batches,
        num_workers=_decoders(dataset, len(batches)),
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # a loader draws a number when it starts: not from the run's stream
    )
    for loaded, size in zip(loader, batches.sizes(), strict=True):
        inputs, targets = loaded.batch()
        yield _not_empty(inputs), targets[: batches.part(size)]


MOST_DECODERS = 8


def _decoders(dataset: Dataset, batches: int) -> int:
    """Loader processes for one pass: as many as this process has threads, where there is something to decode."""
    if not getattr(dataset, "decodes", False) or batches < 2 or multiprocessing.current_process().daemon:
        return 0
    return min(torch.get_num_threads(), MOST_DECODERS, batches)


@dataclass
class _Loaded:
    """A batch that a loader process has read, or why it could not; and what it left out as unreadable."""

    read: Batch | ConfigError
    left_out: list[UnreadableError]

    def batch(self) -> Batch:
        """The batch, after what it brings has been said here.

        Raises:
            ConfigError: the one that the process met, as it was: a DataLoader would wrap it into a traceback.
        """
        for error in self.left_out:
            leave_out(error)
        if isinstance(self.read, ConfigError):
            raise self.read
        return self.read

    def pin_memory(self) -> _Loaded:
        """By what a DataLoader asks for."""
        if isinstance(self.read, ConfigError):
            return self
        inputs, targets = self.read
        return _Loaded((inputs.pin_memory(), targets.pin_memory()), self.left_out)


class _Told(Dataset[_Loaded]):
    """A data set whose refusals can leave the process that reads it."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> _Loaded:
        try:
            read = self._dataset.__getitems__(indices)  # type: ignore[attr-defined]
        except ConfigError as error:
            read = error.with_traceback(None)
        return _Loaded(read, told())


def together(micro_batches: list[Batch]) -> Batch:
    """A rank's part of a global batch in one piece, with padding only where there is nothing else, or a single row."""
    if sum(len(targets) for _, targets in micro_batches) < 2:
        return max(micro_batches, key=lambda batch: len(batch[1]))
    inputs = torch.cat([inputs[: len(targets)] for inputs, targets in micro_batches])
    return inputs, torch.cat([targets for _, targets in micro_batches])


def _as_it_is(batch: Any) -> Any:
    """A batch that the data set has stacked. Loader processes are sent this function, so it has a name."""
    return batch


def _micro(inputs: Tensor, targets: Tensor, count: int, least: int) -> list[Batch]:
    """Cut a rank's part of a batch into so many pieces; one that has fewer inputs than ``least`` is padded with copies."""
    pieces = zip(inputs[: len(targets)].tensor_split(count), targets.tensor_split(count), strict=True)
    return [(_padded(piece if len(piece) else _not_empty(inputs)[:1], least), rows) for piece, rows in pieces]


def _padded(inputs: Tensor, least: int) -> Tensor:
    missing = least - len(inputs)
    return inputs if missing <= 0 else torch.cat([inputs, inputs[:1].expand(missing, *inputs.shape[1:])])


def _not_empty(inputs: Tensor) -> Tensor:
    """The inputs, or, where all of a batch's are left out as unreadable, one of zeros."""
    return inputs if len(inputs) else inputs.new_zeros(1, *inputs.shape[1:])
