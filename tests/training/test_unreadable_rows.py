"""Rows that cannot be read, left out on request: counted, named, and without weight in the sums over the others."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from proxscore import config as configuration
from proxscore.config import Config, ConfigError
from proxscore.methods import RunLength
from proxscore.training.data.batches import GlobalBatches
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.run_length import batches
from proxscore.training.loop.train import train
from proxscore.vision import decoding
from proxscore.vision.image_task import ImageTask

ROWS, BATCH, EPOCHS = 120, 20, 2
VIT = {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}}


def encoded(row: int) -> bytes:
    """Noise, brighter for class 1, as JPEG: cut short, it still has a good header."""
    pixels = np.random.default_rng(row).integers(0, 128, (16, 16)) + 100 * (row % 2)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="JPEG")
    return buffer.getvalue()


def damage(row: int) -> bytes | None:
    return (None, np.random.default_rng(row).bytes(90), encoded(row)[:-120])[row % 3]


BAD = (*range(0, ROWS, 8), *range(1, ROWS, 12))


def write(folder: Path, kind: str, bad: tuple[int, ...] = BAD) -> dict[str, Any]:
    """Row r is image r of the Parquet file, or of its class folder; a null image is an empty file there."""
    images = [damage(row) if row in bad else encoded(row) for row in range(ROWS)]
    if kind == "parquet":
        folder.mkdir()
        table = pa.table({"image": pa.array(images, pa.binary()), "label": [row % 2 for row in range(ROWS)]})
        pq.write_table(table, folder / "rows.parquet", row_group_size=25)
        return {"kind": "parquet", "path": str(folder), "classes": 2, "size": 8, "channels": 1}
    for row, image in enumerate(images):
        (folder / str(row % 2)).mkdir(parents=True, exist_ok=True)
        (folder / str(row % 2) / f"{row:03d}.jpg").write_bytes(image or b"")
    return {"kind": "image_folder", "path": str(folder), "size": 8, "channels": 1}


def tree(data: dict[str, Any], policy: str = "skip", **training: Any) -> Config:
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "workers": 0, "device": "cpu"} | training
    return configuration.parse(
        {
            "name": "damaged",
            "task": {"model": VIT, "data": data | {"unreadable": policy}},
            "method": {"kind": "adamw"},
            "training": settings,
            "evaluation": {"batch_size": 7},
            "tracking": {"interval": 0},
        }
    )


def run(config: Config, folder: Path, die_at: int | None = None) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Results, and the records of all steps; or those up to the death at a step."""
    records: list[dict[str, float]] = []

    def sink(payloads: list[dict[str, Any]]) -> None:
        records.extend(payloads[0]["records"])
        if payloads[0]["step"] == die_at:
            raise InterruptedError

    try:
        worker = LocalWorker(folder, torch.device("cpu"), sink, 2)
        return train(config, config.method, config.training.epochs, ImageTask(config.task), worker), records
    except InterruptedError:
        return {}, records


def rows_of(task: ImageTask, part: str) -> list[int]:
    """Numbers, as above, of a split's rows: a folder's are sorted by class."""
    rows = getattr(task.data, part).rows
    order = [*range(0, ROWS, 2), *range(1, ROWS, 2)] if task.config.data.kind == "image_folder" else range(ROWS)
    return [order[row] for row in rows]


@pytest.mark.parametrize(("kind", "processes"), [("parquet", 0), ("image_folder", 0), ("image_folder", 1)])
def test_a_run_over_damaged_images_counts_and_names_them_and_weighs_the_others_as_ever(
    kind: str, processes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_left_out", set())
    config = tree(write(tmp_path / "data", kind), loader_processes=processes)
    with caplog.at_level(logging.WARNING):
        results, records = run(config, tmp_path / "run")
    task = ImageTask(config.task, verify=False)
    bad = {part: [row in BAD for row in rows_of(task, part)] for part in ("train", "validation", "test")}

    counts = [record["data/skipped_rows"] for record in records if "data/skipped_rows" in record]
    assert counts[-1] == EPOCHS * sum(bad["train"]) > 0
    sizes = []
    for epoch in range(EPOCHS):
        order = GlobalBatches(len(bad["train"]), BATCH, 0, 1, config.seed)
        order.epoch = epoch
        sizes += [sum(bad["train"][index] for index in indices) for indices in order]
    assert counts == np.cumsum([size for size in sizes if size]).tolist()
    assert results["test"]["point"]["skipped_rows"] == sum(bad["test"]) > 0

    # The first step's loss is at the initial weights: the sum over readable rows, divided by the rows that were drawn.
    torch.manual_seed(config.seed)
    module = task.build_model().train()
    drawn = next(iter(GlobalBatches(len(bad["train"]), BATCH, 0, 1, config.seed)))
    readable = [index for index in drawn if not bad["train"][index]]
    assert len(readable) < len(drawn)
    nll = torch.nn.functional.cross_entropy(
        module(task.data.train.__getitems__(readable)[0]), task.data.train.labels[readable]
    )
    assert records[0]["train/nll"] == pytest.approx(nll.item() * len(readable) / len(drawn), rel=1e-5)

    if not processes:  # a loader process has a log of its own
        named = [record.getMessage() for record in caplog.records if record.name == decoding.__name__]
        assert len(named) == len(set(named)) == len(BAD)
        for row in BAD:
            name = f"rows.parquet, row {row}:" if kind == "parquet" else f"{row % 2}/{row:03d}.jpg:"
            assert sum(name in line for line in named) == 1


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    config = tree(write(tmp_path / "data", "parquet"))
    whole, died, resumed = (
        run(config, tmp_path / name, die_at)[1] for name, die_at in (("whole", None), ("broken", 7), ("broken", None))
    )
    assert died[-1]["step"] == 7
    assert resumed[0]["step"] == 1 + len(whole) // EPOCHS
    assert resumed == whole[len(whole) // EPOCHS :]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_of_which_nothing_is_left_changes_nothing_and_the_run_goes_on(accumulate: int, tmp_path: Path) -> None:
    data = write(tmp_path / "sound", "parquet", bad=())
    task = ImageTask(tree(data).task)
    second = list(GlobalBatches(len(task.data.train), BATCH, 0, 1, 0))[1]
    data = write(tmp_path / "data", "parquet", bad=tuple(int(task.data.train.rows[index]) for index in second))
    results, records = run(tree(data, accumulate=accumulate), tmp_path / "run")
    assert [record["train/nll"] == 0 for record in records[:3]] == [False, True, False]
    assert [record.get("data/skipped_rows") for record in records[:3]] == [None, BATCH, None]
    assert np.isfinite(results["test"]["point"]["nll"])
    assert results["steps"] == len(records)


def test_without_the_request_a_damaged_image_ends_the_run_by_name(tmp_path: Path) -> None:
    config = tree(write(tmp_path / "data", "parquet"), "fail")
    with pytest.raises(ConfigError, match=r"rows\.parquet, row \d+: (the image is null|not a readable image: )"):
        run(config, tmp_path / "run")


def test_what_is_no_fault_of_a_row_is_not_left_out(tmp_path: Path) -> None:
    """A file that is gone, and a data set of which nothing can be read."""
    config = tree(write(tmp_path / "data", "image_folder", bad=(0,)))
    data = ImageTask(config.task).data.train
    data.reader.files[data.rows[3]].unlink()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"\.jpg: cannot be read: .*No such file"):
        data.__getitems__([2, 3])
    config = tree(write(tmp_path / "nothing", "image_folder", bad=tuple(range(0, ROWS))))
    for file in (tmp_path / "nothing").rglob("*.jpg"):
        file.write_bytes(b"no image")
    with pytest.raises(ConfigError, match="none of the 120 images can be read"):
        ImageTask(config.task)


def test_an_epoch_keeps_the_lanes_that_it_was_begun_with_and_the_next_takes_the_ranks_that_are_there() -> None:
    asked = []

    class Data:
        def epoch(self, epoch: int, start: int, lanes: int) -> Any:
            asked.append((epoch, start, lanes))
            return iter([([], 1)] * (4 - start))

    class Three(LocalWorker):
        data_world = 3  # type: ignore[assignment]

    worker = Three(Path(), torch.device("cpu"), lambda payloads: None, 1)
    progress = {"step": 5, "lanes": 2}
    lanes = [progress["lanes"] for _ in batches(Data(), progress, RunLength(10, 4, 100), worker.data_world, 10)]  # type: ignore[arg-type]
    assert asked == [(1, 1, 2), (2, 0, 3)]
    assert lanes == [2, 2, 2, 3, 3]
