"""Batches that Ray Data reads from Parquet files: those of the epoch's order, bit for bit, wherever it is taken up."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.training.data.batches import evaluation_batches
from proxscore.training.data.stream_order import EpochOrder
from proxscore.training.data.streamed import RayTrainingData, recut_chunks, streamed_evaluation_batches
from proxscore.vision.data import load_images
from proxscore.vision.images import ImageDataset
from proxscore.vision.ray_data import Share, StreamedRows
from proxscore.vision.sources.parquet import ParquetConfig

BATCH, GROUP, SEED, EPOCH = 8, 13, 3, 1
FILES = (170, 130)


def image(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write(folder: Path, damaged: dict[int, bytes | None], **settings: Any) -> ImageDataset:
    """Training rows of two files of noise, no two images alike; rows are counted through both."""
    images = [damaged.get(row, image(row)) for row in range(sum(FILES))]
    labels = [row % 3 for row in range(sum(FILES))]
    for number, (first, count) in enumerate(zip((0, FILES[0]), FILES, strict=True)):
        own = slice(first, first + count)
        table = pa.table({"image": pa.array(images[own], pa.binary()), "label": labels[own]})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=GROUP)
    return load_images(ParquetConfig(kind="parquet", path=folder, classes=3, size=4, channels=1, **settings)).train


def streamed(dataset: ImageDataset, rank: int, world: int) -> RayTrainingData:
    return RayTrainingData(StreamedRows(dataset, Share(cpus=0.5, store=2e7)), BATCH, rank, world, SEED)


def batches(
    dataset: ImageDataset, rank: int, world: int, start: int = 0, lanes: int = 2
) -> list[tuple[Tensor, Tensor]]:
    found = []
    for ((inputs, targets),), size in streamed(dataset, rank, world).epoch(EPOCH, start, lanes):
        assert size == BATCH or len(found) + start == len(dataset) // BATCH
        found.append((inputs, targets))
    return found


@pytest.mark.usefixtures("ray_local")
def test_batches_are_the_readers_for_the_rows_of_the_order_from_the_start_and_from_the_middle(tmp_path: Path) -> None:
    dataset, stop = write(tmp_path, {}), 11
    sizes = StreamedRows(dataset, Share(1, 1)).sizes
    order = EpochOrder(sizes, BATCH, 2, SEED, EPOCH)
    assert sizes.sum() == len(dataset) == len(order.rows)
    assert len(order.bounds) == 3
    assert order.bounds[1] > BATCH * stop  # the start below lies inside a window
    seen = []
    for rank in range(2):
        whole = batches(dataset, rank, 2)
        assert len(whole) == -(-len(dataset) // BATCH) == streamed(dataset, rank, 2).steps_per_epoch
        positions = np.concatenate(order.positions(rank, 2))
        for step, (inputs, targets) in enumerate(whole):
            rows = order.rows[positions[positions // BATCH == step]]
            images, labels = dataset.__getitems__(rows.tolist())
            assert torch.equal(inputs[: len(targets)], images)
            assert torch.equal(targets, labels)
        rest = batches(dataset, rank, 2, start=stop)
        for ours, theirs in zip(rest, whole[stop:], strict=True):
            assert all(map(torch.equal, ours, theirs))
        seen += whole[:stop]
    head = streamed(dataset, 0, 2)
    first, expected = (
        [pieces[0] for pieces, _ in some] for some in (head.first(3), itertools.islice(head.epoch(0), 3))
    )
    assert len(first) == 3
    for ours, theirs in zip(first, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    # And with another number of ranks: what remains of the epoch, each row once.
    seen += [batch for rank in range(3) for batch in batches(dataset, rank, 3, start=stop)]
    images = [image.numpy().tobytes() for inputs, targets in seen for image in inputs[: len(targets)]]
    assert len(images) == len(set(images)) == len(dataset)


@pytest.mark.usefixtures("ray_local")
def test_rows_before_the_start_are_not_decoded_and_a_bad_one_after_it_is_named(tmp_path: Path) -> None:
    dataset = write(tmp_path, {})
    order = EpochOrder(StreamedRows(dataset, Share(1, 1)).sizes, BATCH, 1, SEED, EPOCH)
    row = int(dataset.rows[order.rows[BATCH - 1]])  # of the first batch
    dataset = write(tmp_path, {row: b"no image"})
    file, inside = (0, row) if row < FILES[0] else (1, row - FILES[0])
    with pytest.raises(ConfigError) as refusal:
        batches(dataset, 0, 1, lanes=1)
    expected = f"{tmp_path}/part-{file}.parquet, row {inside}: not a readable image: not in a known image format"
    assert str(refusal.value) == expected
    assert len(batches(dataset, 0, 1, start=1, lanes=1)) == len(dataset) // BATCH


@pytest.mark.usefixtures("ray_local")
def test_rows_that_are_left_out_are_those_that_the_reader_leaves_out(tmp_path: Path) -> None:
    damaged = {row: (None, b"no image", image(row)[:45])[row % 3] for row in range(0, 300, 7)}
    dataset = write(tmp_path, damaged, unreadable="skip")
    bad = np.isin(dataset.rows, list(damaged))
    order = EpochOrder(StreamedRows(dataset, Share(1, 1)).sizes, BATCH, 2, SEED, EPOCH)
    positions = np.concatenate(order.positions(1, 2))
    left_out = 0
    for step, (inputs, targets) in enumerate(batches(dataset, 1, 2)):
        rows = order.rows[positions[positions // BATCH == step]]
        good = rows[~bad[rows]]
        assert torch.equal(inputs[: len(targets)], dataset.__getitems__(good.tolist())[0])
        assert torch.equal(targets, dataset.labels[good])
        left_out += len(rows) - len(targets)
    assert left_out == bad[order.rows[positions]].sum() > 10


def test_chunks_are_cut_anew_without_losing_a_row() -> None:
    chunks = [{"label": np.arange(first, end)} for first, end in [(0, 5), (5, 6), (6, 20)]]
    parts = [[int(row) for piece in pieces for row in piece["label"]] for pieces in recut_chunks(chunks, [3, 0, 4, 13])]
    assert parts == [list(range(3)), [], list(range(3, 7)), list(range(7, 20))]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("world", [1, 2])
def test_an_evaluation_streams_the_batches_that_loaders_read(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = {row: (None, b"no image")[row % 2] for row in range(0, 300, 9)}
    dataset = write(tmp_path, damaged, unreadable="skip", limit=209)
    assert len(dataset) % BATCH == 1  # the last batch leaves the second of two ranks nothing but padding
    monkeypatch.setattr("proxscore.training.data.streamed.TASK_ROWS", 3 * BATCH)
    for rank in range(world):
        rows = StreamedRows(dataset, Share(cpus=0.5, store=2e7))
        found = list(streamed_evaluation_batches(rows, BATCH, rank, world))
        expected = list(evaluation_batches(dataset, BATCH, rank, world))
        assert len(found) == len(expected) == -(-len(dataset) // BATCH)
        for ours, theirs in zip(found, expected, strict=True):
            assert all(map(torch.equal, ours, theirs))
