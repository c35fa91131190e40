"""Parquet files with encoded images."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from proxscore.config import ConfigError
from proxscore.vision.data import load_images
from proxscore.vision.sources.parquet import ParquetConfig


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(count: int, seed: int) -> tuple[list[bytes], list[int], np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4), dtype=np.uint8)
    return [encode(image) for image in pixels], [i % 3 for i in range(count)], pixels


def write(path: Path, images: list[Any], labels: Any, group: int = 7) -> None:
    pq.write_table(pa.table({"image": images, "label": labels}), path, row_group_size=group)


def config(path: Path, **settings: Any) -> ParquetConfig:
    return ParquetConfig(kind="parquet", path=path, **{"classes": 3, "size": 4, "channels": 1, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, count in enumerate((40, 25)):
        write(tmp_path / f"part-{number}.parquet", *rows(count, number)[:2])
    return tmp_path


def test_rows_are_numbered_by_file_and_row_and_give_their_pixels_and_labels(folder: Path) -> None:
    data = load_images(config(folder))
    pixels = np.concatenate([rows(40, 0)[2], rows(25, 1)[2]])
    labels = np.array([*rows(40, 0)[1], *rows(25, 1)[1]])
    assert data.splits["counts"] == {"train": 46, "validation": 6, "test": 13}
    for part in (data.train, data.validation, data.test):
        backwards = np.arange(len(part))[::-1]
        images, found = part.__getitems__(backwards.tolist())
        own = part.rows[backwards]
        np.testing.assert_allclose(images[:, 0].numpy(), (pixels[own] / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found.numpy(), labels[own])
    copy = pickle.loads(pickle.dumps(data.test))
    np.testing.assert_array_equal(copy[2][0].numpy(), data.test[2][0].numpy())


def test_a_copy_for_another_process_leaves_the_images_behind(folder: Path) -> None:
    data = load_images(config(folder))
    before = len(pickle.dumps(data.train))
    data.train.__getitems__([0])
    assert len(pickle.dumps(data.train)) == before


def test_images_in_structs_and_a_single_file_are_read(tmp_path: Path) -> None:
    images, labels, pixels = rows(30, 2)
    path = tmp_path / "all.parquet"
    write(path, [{"bytes": image, "path": "x.png"} for image in images], pa.array(labels, pa.uint8()))
    data = load_images(config(path))
    found, _ = data.test.__getitems__(range(len(data.test)))
    np.testing.assert_allclose(found[:, 0].numpy(), (pixels[data.test.rows] / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)


def test_files_named_by_split_are_those_splits(tmp_path: Path) -> None:
    for part, count in {"train-0": 20, "train-1": 10, "validation": 9, "test-0": 6}.items():
        write(tmp_path / f"{part}.parquet", *rows(count, count)[:2])
    data = load_images(config(tmp_path))
    assert data.splits["counts"] == {"train": 30, "validation": 9, "test": 6}
    assert data.splits["fractions"] == {}
    images, _ = data.test.__getitems__(range(6))
    np.testing.assert_allclose(images[:, 0].numpy(), (rows(6, 6)[2] / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
    write(tmp_path / "other.parquet", *rows(3, 0)[:2])
    assert f"{tmp_path / 'other.parquet'}: other files are named by split" in refusal(
        lambda: load_images(config(tmp_path))
    )


def test_an_image_that_cannot_be_decoded_is_named_by_file_and_row(tmp_path: Path) -> None:
    images, labels, _ = rows(30, 5)
    images[17] = b"no image"
    path = tmp_path / "all.parquet"
    write(path, images, labels)
    data = load_images(config(path))
    expected = f"{path}, row 17: not a readable image: not in a known image format"
    parts = (data.train, data.validation, data.test)
    assert refusal(lambda: [part.__getitems__(range(len(part))) for part in parts]) == expected


def test_a_null_image_is_named_by_file_and_row(tmp_path: Path) -> None:
    images, labels, _ = rows(30, 5)
    write(tmp_path / "all.parquet", [None, *images[1:]], labels)
    data = load_images(config(tmp_path))
    parts = (data.train, data.validation, data.test)
    message = refusal(lambda: [part.__getitems__(range(len(part))) for part in parts])
    assert message == f"{tmp_path / 'all.parquet'}, row 0: the image is null"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 3, 2], ", row 2: label 3 is outside 0..2"),
        ([0, -1, 1, 2], ", row 1: label -1 is outside 0..2"),
        (pa.array([0, 1, 2, 2**64 - 1], pa.uint64()), f", row 3: label {2**64 - 1} is outside 0..2"),
        ([0, 1, 2, None], ", row 3: the label is null; expected 0..2"),
        ([0.0, 1.0, 2.0, 1.0], ": column 'label' is double, which are values; those of part-0.parquet are classes"),
    ],
)
def test_wrong_labels_are_named_by_file_and_row_before_an_image_is_read(
    folder: Path, labels: Any, expected: str
) -> None:
    bad = folder / "part-1.parquet"
    write(bad, [b"never looked at"] * 4, labels)
    assert refusal(lambda: load_images(config(folder))) == f"{bad}{expected}"


def test_missing_columns_are_named_with_those_present(folder: Path) -> None:
    message = refusal(lambda: load_images(config(folder, image_column="img")))
    assert message == f"{folder / 'part-0.parquet'}: no column 'img'; it has image, label"
    assert "no column 'y'" in refusal(lambda: load_images(config(folder, label_column="y")))
    assert "column 'label' is int64; expected encoded images" in refusal(
        lambda: load_images(config(folder, image_column="label"))
    )


def test_paths_without_parquet_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert refusal(lambda: load_images(config(absent))) == f"task.data.path {absent}: no such file or folder"
    absent.mkdir()
    assert "no file named *.parquet" in refusal(lambda: load_images(config(absent)))
    (folder / "part-0.parquet").write_bytes(b"PAR1 broken")
    assert f"{folder / 'part-0.parquet'}: not a readable Parquet file" in refusal(lambda: load_images(config(folder)))


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)
