"""What every rank is fed: the same global batches however many ranks share them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from proxscore.training.data.batches import GlobalBatches, TrainingData, evaluation_batches
from proxscore.training.data.micro_batches import joined_batch


class Numbered(Dataset[tuple[Tensor, Tensor]]):
    """Row i has the input [i] and the target i."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        numbers = torch.tensor(list(indices))
        return numbers[:, None].float(), numbers


def rows_by_step(
    world: int, epoch: int, start: int = 0, *, rows: int = 103, processes: int = 0, seed: int = 7
) -> list[list[int]]:
    """The rows of each global batch, put together from those of all ranks."""
    streams = []
    for rank in range(world):
        data = TrainingData(Numbered(rows), 20, rank, world, seed, processes=processes)
        streams.append([(batches[0][1].tolist(), size) for batches, size in data.epoch(epoch, start)])
    steps = []
    for parts in zip(*streams, strict=True):
        (size,) = {size for _, size in parts}
        together = list(itertools.chain.from_iterable(numbers for numbers, _ in parts))
        assert len(together) == size
        assert max(len(numbers) for numbers, _ in parts) - min(len(numbers) for numbers, _ in parts) <= 1
        steps.append(sorted(together))
    return steps


@pytest.mark.parametrize("world", [2, 3])
def test_global_batches_are_the_same_for_any_number_of_ranks(world: int) -> None:
    assert rows_by_step(world, epoch=4) == rows_by_step(1, epoch=4)


def test_an_epoch_gives_every_row_once_in_an_order_of_its_own() -> None:
    first, second = rows_by_step(2, epoch=0), rows_by_step(2, epoch=1)
    for steps in (first, second):
        assert [len(step) for step in steps] == [20, 20, 20, 20, 20, 3]
        assert sorted(itertools.chain.from_iterable(steps)) == list(range(103))
    assert first != second
    assert first != rows_by_step(2, epoch=0, seed=8)
    assert first[0] != list(range(20))


@pytest.mark.parametrize("processes", [0, 1])
def test_start_skips_whole_batches_of_the_same_epoch(processes: int) -> None:
    assert rows_by_step(2, epoch=2, start=4, processes=processes) == rows_by_step(2, epoch=2)[4:]


def test_the_number_of_batches_does_not_depend_on_the_ranks_and_one_without_a_row_gets_padding() -> None:
    for world in (1, 2, 3):
        assert [len(step) for step in rows_by_step(world, epoch=0, rows=41)] == [20, 20, 1]
        assert rows_by_step(world, epoch=0, rows=41) == rows_by_step(1, epoch=0, rows=41)
        data = TrainingData(Numbered(41), 20, world - 1, world, seed=7)
        assert data.steps_per_epoch == 3
        (((inputs, targets),), size) = list(data.epoch(0))[-1]
        assert size == len(inputs) == 1
        assert len(targets) == (world == 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_micro_batches_are_the_ranks_rows_cut_into_the_asked_number_of_pieces(rank: int) -> None:
    """The last batch has three rows: two for rank 0, one for rank 1. A piece that none is left for gets padding."""
    whole = TrainingData(Numbered(103), 20, rank, 2, seed=0)
    cut = TrainingData(Numbered(103), 20, rank, 2, seed=0, accumulate=3)
    for (one, size), (pieces, same_size) in zip(whole.epoch(0), cut.epoch(0), strict=True):
        assert size == same_size
        assert len(pieces) == 3
        assert all(len(x) == max(len(y), 1) for x, y in pieces)
        assert max(len(y) for _, y in pieces) - min(len(y) for _, y in pieces) <= 1
        for part, expected in zip(joined_batch(pieces), one[0], strict=True):
            assert torch.equal(part, expected)


class Unreadable(Numbered):
    """Even rows are left out."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return super().__getitems__([index for index in indices if index % 2])


@pytest.mark.parametrize("processes", [0, 1])
def test_what_is_left_of_a_batch_is_passed_on_and_padding_where_nothing_is(processes: int) -> None:
    data = TrainingData(Unreadable(40), 2, 0, 1, seed=0, accumulate=2, processes=processes)
    batches = [(pieces, size) for pieces, size in data.epoch(0)]
    assert {size for _, size in batches} == {2}
    assert {sum(len(y) for _, y in pieces) for pieces, _ in batches} == {0, 1, 2}
    for pieces, _ in batches:
        for x, y in pieces:
            assert x.shape == (1, 1)
            assert torch.equal(x[: len(y), 0].long(), y)
    assert sorted(int(row) for pieces, _ in batches for _, y in pieces for row in y) == list(range(1, 40, 2))
    for inputs, labels in evaluation_batches(Unreadable(4), 1, 0, 1):
        assert inputs.shape == (1, 1)
        assert labels.tolist() == inputs[: len(labels), 0].tolist()


@pytest.mark.parametrize(("rows", "world"), [(10, 1), (10, 3), (9, 3), (5, 4), (1, 2)])
def test_evaluation_gives_every_row_once_in_order_and_every_rank_equally_many_batches(rows: int, world: int) -> None:
    streams = [list(evaluation_batches(Numbered(rows), 4, rank, world)) for rank in range(world)]
    assert {len(stream) for stream in streams} == {-(-rows // 4)}
    targets = []
    for parts in zip(*streams, strict=True):
        for inputs, labels in parts:
            assert len(inputs) == max(len(labels), 1)  # a rank without a row gets one without a target
            assert torch.equal(inputs[: len(labels), 0].long(), labels)
        targets += sorted(itertools.chain.from_iterable(labels.tolist() for _, labels in parts))
    assert targets == list(range(rows))


def test_evaluation_keeps_the_order_of_the_rows() -> None:
    assert list(GlobalBatches(10, 4, 0, 1)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(GlobalBatches(10, 4, 1, 2)) == [[1, 3], [5, 7], [9]]
