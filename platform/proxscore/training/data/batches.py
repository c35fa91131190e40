"""Batches for a rank: the same global batches whatever the number of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from proxscore.training.data.loading import Readable, as_it_is, decoders
from proxscore.training.data.micro_batches import Batch, micro_batches, not_empty
from proxscore.training.data.stream_order import batch_sizes


class GlobalBatches:
    """Yields the row numbers of a rank's part of every global batch, as a DataLoader's sampler.

    Training order is a permutation by (seed, epoch), the same on all ranks; rank r takes every world-th row of a global
    batch from its r-th on. Iterating yields one list of indices per batch; a rank that has no row in one is given the batch's
    first.

    Args:
        rows: number of rows N of the data set.
        batch_size: rows of a global batch B; see :func:`proxscore.training.data.stream_order.batch_sizes`.
        shuffle_seed: of the permutation; none keeps the rows' order (evaluation).
        by_epoch: number the rows anew in every epoch, from epoch * N on: they are shown in another view.
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
        by_epoch: bool = False,
    ) -> None:
        self._by_epoch = by_epoch
        self.rows, self.rank, self.world, self.shuffle_seed = rows, rank, world, shuffle_seed
        self._sizes = batch_sizes(rows, batch_size, even_end=even_end)
        self.epoch = self.start = 0

    def sizes(self) -> list[int]:
        """Give the number of rows of each global batch."""
        return self._sizes

    def part(self, size: int) -> int:
        """Count this rank's rows of a global batch of so many; where there are none, what it reads is padding."""
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
                own = list(order[first + self.rank : first + size : self.world] or order[first : first + 1])
                yield [self.epoch * self.rows + row for row in own] if self._by_epoch else own


class TrainingData:
    """Reads the training rows of a data set in memory or on disk, in seeded global batches that are cut into micro-batches.

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
        by_epoch = getattr(dataset, "by_epoch", False)
        self._batches = GlobalBatches(rows, batch_size, rank, world, seed, even_end=least > 1, by_epoch=by_epoch)
        self._loader = DataLoader(
            Readable(dataset),
            batch_sampler=self._batches,
            num_workers=processes,
            collate_fn=as_it_is,
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
            yield micro_batches(inputs, targets[: self._batches.part(size)], self.accumulate, self.least), size

    def first(self, count: int) -> Iterator[tuple[list[Batch], int]]:
        """The first batches of the first epoch, as :meth:`epoch` gives them, for what looks at data beside training."""
        return itertools.islice(self.epoch(0), count)


def evaluation_batches(dataset: Dataset, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
    """Yield this rank's rows of a data set in order, each once. Other processes read ahead what has to be decoded.

    All ranks yield equally many batches: one that has no row left repeats an input without a target, as padding.
    """
    batches = GlobalBatches(len(dataset), batch_size, rank, world)  # type: ignore[arg-type]
    loader = DataLoader(
        Readable(dataset),
        batch_sampler=batches,
        num_workers=decoders(dataset, len(batches)),
        collate_fn=as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # a loader draws a number when it starts: not from the run's stream
    )
    for loaded, size in zip(loader, batches.sizes(), strict=True):
        inputs, targets = loaded.batch()
        yield not_empty(inputs), targets[: batches.part(size)]
