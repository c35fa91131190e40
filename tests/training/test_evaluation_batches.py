"""Batches of an evaluation: each image decoded once per pass, by other processes, and read from where it lies alone."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.training.data.batches import TrainingData, evaluation_batches
from proxscore.training.data.loading import training_loaders
from proxscore.vision import decoding
from proxscore.vision.data import load_images
from proxscore.vision.images import ImageDataset, Reader, View
from proxscore.vision.sources.parquet import ParquetConfig, ParquetReader, RowGroups
from proxscore.vision.splits import Rows


class Noted(Reader):
    """Rows that note in a file who reads them."""

    decodes = True

    def __init__(self, log: Path, rows: int = 50) -> None:
        self.log, self.labels = log, np.arange(rows)

    def read(self, rows: Rows, view: View | None = None) -> tuple[Tensor, Rows]:
        with self.log.open("a") as log:
            log.writelines(f"{os.getpid()} {row}\n" for row in rows)
        return torch.from_numpy(rows)[:, None].float(), np.arange(len(rows))


@pytest.fixture
def _two_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield  # type: ignore[misc]
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("world", [1, 2])
def test_each_row_is_read_once_per_pass_in_order_by_other_processes(world: int, tmp_path: Path) -> None:
    dataset = ImageDataset(Noted(tmp_path / "log"), np.arange(0, 50, 2))
    for rank in range(world):
        (tmp_path / "log").write_text("")
        before = torch.get_rng_state()
        batches = list(evaluation_batches(dataset, 6, rank, world))
        assert torch.equal(torch.get_rng_state(), before)
        own = [row for first in range(0, 25, 6) for row in range(first, min(first + 6, 25))[rank::world]]
        targets = torch.cat([targets for _, targets in batches])
        assert targets.tolist() == [2 * row for row in own]
        for inputs, rows in batches:
            assert inputs[: len(rows), 0].tolist() == rows.tolist()
        lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        padding = {0} | {2 * first for first in range(0, 25, 6)} if rank else set()
        assert sorted(int(row) for _, row in lines if int(row) not in padding) == targets.tolist()
        assert str(os.getpid()) not in {process for process, _ in lines}
        assert len({process for process, _ in lines}) == 2


def test_rows_in_memory_are_read_here(tmp_path: Path) -> None:
    reader = Noted(tmp_path / "log")
    reader.decodes = False
    list(evaluation_batches(ImageDataset(reader, np.arange(50)), 6, 0, 1))
    assert {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()} == {str(os.getpid())}


@pytest.mark.usefixtures("_two_threads")
def test_training_rows_that_are_decoded_are_read_by_other_processes_unless_it_is_said_and_are_the_same(
    tmp_path: Path,
) -> None:
    reader = Noted(tmp_path / "log")
    dataset = ImageDataset(reader, np.arange(50))
    assert [training_loaders(dataset, setting) for setting in (None, 0, 5)] == [2, 0, 5]
    found = []
    for processes in (training_loaders(dataset, None), 0):
        (tmp_path / "log").write_text("")
        torch.manual_seed(0)
        data = TrainingData(dataset, 6, 0, 1, seed=3, processes=processes)
        batches = [targets.tolist() for epoch in range(2) for ((_, targets),), _ in data.epoch(epoch)]
        readers = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
        assert (str(os.getpid()) in readers) == (processes == 0)
        found.append((batches, torch.get_rng_state().tolist()))
    assert found[0] == found[1]
    reader.decodes = False
    assert training_loaders(dataset, None) == 0


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, bad: tuple[int, ...] = (), rows: int = 60, group: int = 10) -> Path:
    images = [b"no image" if row in bad else encoded(row) for row in range(rows)]
    pq.write_table(pa.table({"image": images, "label": [row % 3 for row in range(rows)]}), path, row_group_size=group)
    return path


def reader(path: Path, unreadable: str = "fail") -> ParquetReader:
    config = ParquetConfig(kind="parquet", path=path, classes=3, size=4, channels=1, unreadable=unreadable)  # type: ignore[arg-type]
    found = load_images(config).train.reader
    assert isinstance(found, ParquetReader)
    return found


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("processes", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line_whoever_reads_it(processes: int, tmp_path: Path) -> None:
    dataset = ImageDataset(reader(parquet(tmp_path / "a.parquet", bad=(33,))), np.arange(60))
    line = f"{tmp_path / 'a.parquet'}, row 33: not a readable image: not in a known image format"
    with pytest.raises(ConfigError) as refused:
        list(evaluation_batches(dataset, 7, 0, 1))
    assert str(refused.value) == line
    with pytest.raises(ConfigError) as refused:
        list(TrainingData(dataset, 7, 0, 1, 0, processes=processes).epoch(0))
    assert str(refused.value) == line


@pytest.mark.usefixtures("_two_threads")
def test_rows_that_other_processes_leave_out_are_named_here_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoding, "_left_out", set())
    dataset = ImageDataset(reader(parquet(tmp_path / "a.parquet", bad=(3, 33, 34)), "skip"), np.arange(60))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            seen = sum(len(targets) for _, targets in evaluation_batches(dataset, 7, 0, 1))
            assert seen == 57
        list(TrainingData(dataset, 7, 0, 1, 0, processes=1).epoch(0))
    named = [record.getMessage() for record in caplog.records if record.name == decoding.__name__]
    assert [message.split(":")[0] for message in named] == [
        f"{tmp_path / 'a.parquet'}, row {row}" for row in (3, 33, 34)
    ]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Row groups that are read from the file."""
    found: list[int] = []
    original = RowGroups.images_of

    def images_of(self: RowGroups, group: int) -> object:
        found.append(group)
        return original(self, group)

    monkeypatch.setattr(RowGroups, "images_of", images_of)
    return found


def test_of_one_row_its_row_group_alone_is_read(tmp_path: Path, fetched: list[int]) -> None:
    source = reader(parquet(tmp_path / "a.parquet"))
    assert not fetched
    ImageDataset(source, np.array([37])).__getitems__([0])
    assert fetched == [3]


def test_rows_in_order_read_each_group_once_and_hold_one(tmp_path: Path, fetched: list[int]) -> None:
    source = reader(parquet(tmp_path / "a.parquet"))
    dataset = ImageDataset(source, np.arange(0, 60, 3))
    for first in range(0, 20, 4):
        dataset.__getitems__(range(first, first + 4))
        assert len(source._held._columns) == 1
    assert fetched == [0, 1, 2, 3, 4, 5]


def test_rows_in_any_order_read_each_group_once_while_there_is_memory(tmp_path: Path, fetched: list[int]) -> None:
    source = reader(parquet(tmp_path / "a.parquet"))
    order = np.random.default_rng(0).permutation(60)
    images, _ = source.read(order)
    again, _ = source.read(order[::-1].copy())
    assert sorted(fetched) == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(images.flip(0), again, rtol=0, atol=0)
    alone = [source.read(np.array([row]))[0][0] for row in order]
    torch.testing.assert_close(images, torch.stack(alone), rtol=0, atol=0)


def test_no_more_groups_are_held_than_half_of_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = reader(parquet(tmp_path / "a.parquet"))
    size = source.groups.images_of(0).nbytes
    source._held._most = int(2.5 * size)
    source.read(np.random.default_rng(0).permutation(60))
    assert len(source._held._columns) == 2
    assert list(source._held._columns) == [4, 5]


def test_a_file_that_is_gone_since_is_named(tmp_path: Path) -> None:
    source = reader(parquet(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ConfigError, match=r"a\.parquet: cannot be read"):
        source.read(np.array([3]))
