"""The order in which an epoch takes the rows of a streamed data set: mixed, yet read a few row groups at a time.

Rows lie in row groups, which are read whole. An epoch's order is made from (seed, epoch), the groups, the batch size and a
number of lanes, and from nothing else:

1. the groups are put into a random order;
2. consecutive groups make a window, as many as hold ``WINDOW`` global batches;
3. a window's rows, group by group and shuffled in each, are cut into equal lanes; each lane is shuffled, and lanes are
   dealt out in turn: position p of the window is a row of lane p mod lanes;
4. windows follow one another.

Global batch b of B rows is positions [b B, (b + 1) B), but see :func:`batch_sizes` of the last two. Rank r of
W takes the positions p of a window with p mod W = r. With as many lanes as ranks a rank so reads the row groups of its own lane
alone, and the whole cluster reads each group about once. With another number of ranks, as after a resume in mid-epoch, ranks
read more groups, and the order stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

WINDOW = 16  # global batches: what rows are mixed over, and what a rank's decoding task takes its share of
_STREAM = 1  # of random numbers: (seed, 0) and (seed, 1) by themselves are those of the split


def batch_sizes(rows: int, batch_size: int, *, even_end: bool = False) -> list[int]:
    """Rows of each global batch of an epoch. Every batch is kept, however small, so that their number depends on no rank.

    Args:
        even_end: the last two batches share their rows evenly, where the last would have less than half a batch.
    """
    sizes = [min(batch_size, rows - first) for first in range(0, rows, batch_size)]
    if even_end and len(sizes) > 1 and 2 * sizes[-1] < batch_size:
        left = sizes[-2] + sizes[-1]
        sizes[-2:] = [left - left // 2, left // 2]
    return sizes


class EpochOrder:
    """The order of one epoch.

    Args:
        sizes: (G,) rows of each row group; rows are numbered through the groups from 0.
        batch_size: rows of a global batch B.
        lanes: number of ranks that the epoch is begun with.
        batches: rows of each global batch; none: :func:`batch_sizes`.

    Attributes:
        rows: (N,) row numbers in the epoch's order.
        bounds: (windows + 1,) first position of each window, and the end.
    """

    def __init__(
        self, sizes: Rows, batch_size: int, lanes: int, seed: int, epoch: int, batches: Sequence[int] | None = None
    ) -> None:
        self.firsts = np.cumsum(
            [0, *(batches or batch_sizes(int(np.sum(sizes)), batch_size))]
        )  # of batches, and the end
        random = np.random.default_rng((seed, epoch, _STREAM))
        starts = np.cumsum([0, *sizes])
        groups = [np.arange(starts[group], starts[group + 1]) for group in _shuffled(random, np.arange(len(sizes)))]
        parts = []
        for members in _windows(groups, WINDOW * batch_size):
            rows = np.concatenate([_shuffled(random, group) for group in members])
            window = np.empty_like(rows)
            for lane, own in enumerate(np.array_split(rows, lanes)):
                window[lane::lanes] = _shuffled(random, own)
            parts.append(window)
        self.rows: Rows = np.concatenate(parts)
        self.bounds: Rows = np.cumsum([0, *map(len, parts)])

    def positions(self, rank: int, world: int, start: int = 0, stop: int | None = None) -> list[Rows]:
        """The positions of a rank in global batches ``start`` to ``stop``, in order, window by window.

        Windows in which there are none are left out.
        """
        begin, stopped = self.firsts[start], self.firsts[-1 if stop is None else stop]
        parts = []
        for first, end in zip(self.bounds[:-1], self.bounds[1:], strict=True):
            own = np.arange(first + rank, end, world)
            parts.append(own[(own >= begin) & (own < stopped)])
        return [part for part in parts if len(part)]

    def counts(self, rank: int, world: int) -> Rows:
        """(batches,) rows of a rank in each global batch; zero where it has none."""
        own = np.concatenate([*self.positions(rank, world), np.empty(0, int)])
        return np.bincount(np.searchsorted(self.firsts, own, side="right") - 1, minlength=len(self.firsts) - 1)


def _windows(groups: list[Rows], least: int) -> Iterator[list[Rows]]:
    """Consecutive groups that hold so many rows together; the last ones may hold fewer."""
    members: list[Rows] = []
    for group in groups:
        members.append(group)
        if sum(map(len, members)) >= least:
            yield members
            members = []
    if members:
        yield members


def _shuffled(random: np.random.Generator, values: Rows) -> Rows:
    # Only Generator.random is used: shuffling algorithms may change between NumPy releases, this stream is kept.
    return values[np.argsort(random.random(len(values)), kind="stable")]
