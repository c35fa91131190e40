"""Training batches of rows that Ray Data streams, each row to one rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import torch

from proxscore.training.data.micro_batches import Batch, micro_batches
from proxscore.training.data.stream_order import EpochOrder, batch_sizes
from proxscore.vision.ray_data import Chunk, StreamedRows


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
        with closing(self._rows.read(segments)) as chunks:
            for pieces, size in zip(recut_chunks(chunks, counts), self._sizes[start:stop], strict=True):
                images = [piece["image"][piece["readable"]] for piece in pieces]
                labels = [piece["label"][piece["readable"]] for piece in pieces]
                inputs = np.concatenate([np.empty((0, *self._rows.shape), np.float32), *images])
                targets = np.concatenate([np.empty(0, np.int64), *labels])
                yield (
                    micro_batches(torch.from_numpy(inputs), torch.from_numpy(targets), self.accumulate, self.least),
                    size,
                )
            next(chunks, None)  # there are none; so the last task ends by itself


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
