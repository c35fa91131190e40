"""Images held in memory: scikit-learn's digits and IDX files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from proxscore.config import ConfigError
from proxscore.vision.data import collate, load_images
from proxscore.vision.sources.digits import DigitsConfig
from proxscore.vision.sources.idx import IdxConfig

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (30, 5, 4), dtype=np.uint8), np.arange(30, dtype=np.uint8) % 3
TEST = RNG.integers(0, 256, (9, 5, 4), dtype=np.uint8), np.arange(9, dtype=np.uint8) % 3


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Training files compressed, test files plain."""
    for part, (images, labels) in {"train": TRAIN, "t10k": TEST}.items():
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            if part == "train":
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (tmp_path / name).write_bytes(content)
    return tmp_path


def idx(path: Path, classes: int = 3) -> IdxConfig:
    return IdxConfig(kind="idx", path=path, classes=classes)


def test_digits_are_those_of_scikit_learn_scaled_and_normalised() -> None:
    data = load_images(DigitsConfig(mean=0.3, std=0.25))
    raw = load_digits()
    assert data.shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    for part in (data.train, data.validation, data.test):
        images, labels = part.__getitems__(range(len(part)))
        expected = (raw.images[part.rows] / 16 - 0.3) / 0.25
        np.testing.assert_allclose(images[:, 0].numpy(), expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(labels.numpy(), raw.target[part.rows])
        np.testing.assert_array_equal(part.labels.numpy(), raw.target[part.rows])


def test_items_batches_and_loader_agree() -> None:
    data = load_images(DigitsConfig()).validation
    images, labels = data.__getitems__([5, 0, 5])
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    for place, index in enumerate([5, 0, 5]):
        image, label = data[index]
        assert isinstance(label, int)
        assert torch.equal(image, images[place])
        assert label == labels[place]
    batches = list(DataLoader(data, batch_size=64, collate_fn=collate))
    whole = data.__getitems__(range(len(data)))
    assert torch.equal(torch.cat([x for x, _ in batches]), whole[0])
    assert torch.equal(torch.cat([y for _, y in batches]), whole[1])


def test_idx_files_plain_or_compressed_give_their_bytes_and_the_test_set_is_their_own(folder: Path) -> None:
    data = load_images(idx(folder))
    assert data.shape == (1, 5, 4)
    images, labels = data.test.__getitems__(range(9))
    np.testing.assert_allclose(images[:, 0].numpy(), (TEST[0] / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(labels.numpy(), TEST[1])
    assert data.splits["counts"] == {"train": 27, "validation": 3, "test": 9}
    assert data.splits["fractions"] == {"validation": 0.1}
    images, labels = data.train.__getitems__(range(27))
    np.testing.assert_allclose(images[:, 0].numpy(), (TRAIN[0][data.train.rows] / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)


def test_idx_without_test_files_sets_test_rows_aside(folder: Path) -> None:
    for path in folder.glob("t10k*"):
        path.unlink()
    assert load_images(idx(folder)).splits["counts"] == {"train": 21, "validation": 3, "test": 6}


IMAGES, LABELS = idx_bytes(TEST[0]), idx_bytes(TEST[1])
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "magic": ("t10k-images-idx3-ubyte", LABELS + IMAGES, "magic number 2049; expected 2051"),
    "cut": ("t10k-images-idx3-ubyte", IMAGES[:-7], "9x5x4 = 180 bytes; 173 follow"),
    "long": ("t10k-labels-idx1-ubyte", LABELS + b"\0", "9 = 9 bytes; more follow"),
    "header": ("t10k-labels-idx1-ubyte", LABELS[:6], "6 bytes, shorter than an IDX header of 8"),
    "count": ("t10k-labels-idx1-ubyte", idx_bytes(TEST[1][:8]), "8 labels for 9 images"),
    "label": ("t10k-labels-idx1-ubyte", LABELS[:-2] + b"\3\0", "row 7: label 3 is outside 0..2"),
    "empty": ("t10k-images-idx3-ubyte", b"", "0 bytes"),
    "gzip": ("train-images-idx3-ubyte.gz", gzip.compress(IMAGES)[:-9], "not a whole gzip file"),
    "no gzip": ("train-images-idx3-ubyte.gz", IMAGES, "not a whole gzip file"),
    "size": ("t10k-images-idx3-ubyte", idx_bytes(TEST[0][:, :4]), "differ in size, 5x4 and 4x4 pixels"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_idx_file_is_named_in_one_line(folder: Path, fault: str) -> None:
    name, content, expected = BROKEN[fault]
    (folder / name).write_bytes(content)
    message = refusal(lambda: load_images(idx(folder)))
    assert expected in message
    assert str(folder if fault == "size" else folder / name) in message


def test_absent_idx_files_are_named(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert "neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz" in refusal(lambda: load_images(idx(folder)))
    absent = folder / "absent"
    assert f"task.data.path {absent}: no such folder" in refusal(lambda: load_images(idx(absent)))


def test_normalisation_needs_a_positive_std_and_a_value_per_channel() -> None:
    assert "task.data.std is 0.0" in refusal(lambda: load_images(DigitsConfig(std=0.0)))
    message = refusal(lambda: load_images(DigitsConfig(mean=[0.5, 0.5, 0.5])))
    assert "task.data.mean has 3 values" in message


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)
