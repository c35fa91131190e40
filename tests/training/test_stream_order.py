"""The order of a streamed epoch: every row once, parts that fit together for any number of ranks, few groups per rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from proxscore.training.data.stream_order import WINDOW, EpochOrder

BATCH = 20
SIZES = np.random.default_rng(0).integers(0, 90, 60)  # about eight windows; some groups have hardly a row
ROWS = int(SIZES.sum())
STEPS = -(-ROWS // BATCH)


def order(lanes: int = 2, seed: int = 0, epoch: int = 0, batch: int = BATCH) -> EpochOrder:
    return EpochOrder(SIZES, batch, lanes, seed, epoch)


def parts(epoch: EpochOrder, rank: int, world: int, start: int = 0) -> dict[int, list[int]]:
    """Rows of a rank by global batch."""
    found: dict[int, list[int]] = {}
    for positions in epoch.positions(rank, world, start):
        for position, row in zip(positions, epoch.rows[positions], strict=True):
            found.setdefault(int(position) // BATCH, []).append(int(row))
    return found


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_an_epoch_is_a_permutation_that_seed_epoch_and_lanes_determine(lanes: int) -> None:
    assert sorted(order(lanes).rows) == list(range(ROWS))
    assert np.array_equal(order(lanes).rows, order(lanes).rows)
    for other in (order(lanes, epoch=1), order(lanes, seed=1), order(lanes + 1)):
        assert np.mean(order(lanes).rows == other.rows) < 0.2


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_the_ranks_parts_of_each_batch_are_disjoint_complete_and_even(lanes: int, world: int) -> None:
    epoch = order(lanes)
    ranks = [parts(epoch, rank, world) for rank in range(world)]
    crossed = np.bincount(epoch.bounds[1:-1] // BATCH, minlength=STEPS)
    for step in range(STEPS):
        own = [rank.get(step, []) for rank in ranks]
        assert sorted(itertools.chain.from_iterable(own)) == sorted(epoch.rows[step * BATCH : (step + 1) * BATCH])
        lengths = [len(rows) for rows in own]
        assert max(lengths) - min(lengths) <= 1 + crossed[step]
        assert lengths == [epoch.counts(rank, world)[step] for rank in range(world)]


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_ranks_as_many_as_lanes_read_each_row_group_about_once_together(lanes: int) -> None:
    epoch = order(lanes)
    group_of = np.repeat(np.arange(len(SIZES)), SIZES)
    reads = [
        set(group_of[epoch.rows[positions]])
        for rank in range(lanes)
        for positions in epoch.positions(rank, lanes)  # a task of a rank reads the groups of one window
    ]
    windows = len(epoch.bounds) - 1
    assert windows > 5
    assert sum(map(len, reads)) <= np.count_nonzero(SIZES) + windows * (
        lanes - 1
    )  # a lane's end may lie inside a group


def test_an_epoch_that_goes_on_with_another_number_of_ranks_gives_each_row_once() -> None:
    epoch, stop = order(lanes=2), 37
    seen = [row for rank in range(2) for step, rows in parts(epoch, rank, 2).items() if step < stop for row in rows]
    seen += [row for rank in range(3) for rows in parts(epoch, rank, 3, start=stop).values() for row in rows]
    assert sorted(seen) == list(range(ROWS))


def test_an_epoch_from_its_middle_on_is_the_end_of_the_whole() -> None:
    whole, rest = parts(order(), 1, 2), parts(order(), 1, 2, start=37)
    assert rest == {step: rows for step, rows in whole.items() if step >= 37}
    begun = np.concatenate(order().positions(1, 2, start=20, stop=37))  # over the end of a window
    assert order().rows[begun].tolist() == [row for step in range(20, 37) for row in whole[step]]


def test_rows_are_mixed_over_windows_of_the_stated_size() -> None:
    epoch = order()
    lengths = np.diff(epoch.bounds)
    assert all(lengths[:-1] >= WINDOW * BATCH)
    assert all(lengths < WINDOW * BATCH + SIZES.max())
    group_of = np.repeat(np.arange(len(SIZES)), SIZES)
    for step in range(STEPS - 1):
        (counts,) = [np.bincount(group_of[epoch.rows[step * BATCH : (step + 1) * BATCH]])]
        assert np.count_nonzero(counts) >= 4  # of the eight or so groups of a window


def test_one_group_larger_than_a_window_and_fewer_rows_than_lanes_are_ordered_too() -> None:
    assert sorted(EpochOrder(np.array([5 * WINDOW]), 1, 3, 0, 0).rows) == list(range(5 * WINDOW))
    few = EpochOrder(np.array([1, 0, 2]), 10, 8, 0, 0)
    assert sorted(few.rows) == [0, 1, 2]
    assert [few.counts(rank, 8).tolist() for rank in range(8)] == [[1], [1], [1], [0], [0], [0], [0], [0]]
