"""Batches of rows that Ray Data streams, each row to one rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import torch

from proxscore.training.data.batches import GlobalBatches
from proxscore.training.data.micro_batches import Batch, micro_batches, not_empty
from proxscore.training.data.stream_order import EpochOrder, batch_sizes
from proxscore.vision.ray_data import Chunk, StreamedRows

TASK_ROWS = 512  # at least, of an evaluation: a task decodes them while the ones before are predicted
LEAST_ROWS = (
    1000  # of a worker in an evaluation: Ray starts processes for its tasks, and fewer are decoded sooner than that
)


class RayTrainingData:
    """Reads training rows that Ray Data streams, in seeded global batches that are cut into micro-batches.

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
        """Yield micro-batches and the rows of their global batch, as :meth:`TrainingData.epoch` does.

        Args:
            lanes: number of ranks that the epoch was begun with; none: as many as there are.
        """
        return self._read(epoch, start, self.steps_per_epoch, lanes or self._world)

    def first(self, count: int) -> Iterator[tuple[list[Batch], int]]:
        """Yield the first batches, as :meth:`TrainingData.first` does.

        No task reads further: to stop one is to end its process, and to start another."""
        return self._read(0, 0, min(count, self.steps_per_epoch), self._world)

    def _read(self, epoch: int, start: int, stop: int, lanes: int) -> Iterator[tuple[list[Batch], int]]:
        order = EpochOrder(self._rows.sizes, self._batch_size, lanes, self._seed, epoch, self._sizes)
        counts = order.counts(self._rank, self._world)[start:stop]
        segments = [order.rows[positions] for positions in order.positions(self._rank, self._world, start, stop)]
        with closing(self._rows.read(segments, views=(self._seed, epoch))) as chunks:
            for pieces, size in zip(recut_chunks(chunks, counts), self._sizes[start:stop], strict=True):
                yield micro_batches(*_joined(self._rows, pieces), self.accumulate, self.least), size
            next(chunks, None)  # there are none; so the last task ends by itself


def streamed_evaluation_batches(rows: StreamedRows, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
    """Yield this rank's rows of a data set in order, each once, as :func:`evaluation_batches` does; Ray's tasks decode them.

    A task reads the rows of a rank in some whole batches, ``TASK_ROWS`` or more, so that few tasks read the same row group.
    """
    batches = GlobalBatches(int(rows.sizes.sum()), batch_size, rank, world)
    parts = [np.asarray(part, dtype=np.int64) for part in batches]
    each = -(-TASK_ROWS // max(map(len, parts), default=1))
    segments = [np.concatenate(parts[first : first + each]) for first in range(0, len(parts), each)]
    with closing(rows.read(segments)) as chunks:
        for pieces, size in zip(recut_chunks(chunks, map(len, parts)), batches.sizes(), strict=True):
            inputs, targets = _joined(rows, pieces)
            yield not_empty(inputs), targets[: batches.part(size)]
        next(chunks, None)  # as above


def _joined(rows: StreamedRows, pieces: list[Chunk]) -> Batch:
    """The readable rows of some pieces, as a batch."""
    images = [piece["image"][piece["readable"]] for piece in pieces]
    labels = [piece["label"][piece["readable"]] for piece in pieces]
    inputs = np.concatenate([np.empty((0, *rows.shape), np.float32), *images])
    targets = np.concatenate([np.empty((0, *rows.label_shape), rows.label_type), *labels])
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def recut_chunks(chunks: Iterable[Chunk], counts: Iterable[int]) -> Iterator[list[Chunk]]:
    """Cut chunks of columns, of any lengths, into lists of pieces that have these numbers of rows together."""
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
