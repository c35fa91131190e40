"""Images of other kinds: prepared as those of the task, and refused where they are its own."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.vision.image_task import ImageTask
from proxscore.vision.outside import ROWS, load_outside
from proxscore.vision.overlap import check_outside


def picture(seed: int, size: tuple[int, int] = (20, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in two folders of classes."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        path = root / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture(number).save(path)
    return root


@pytest.fixture
def task(folder: Path) -> ImageTask:
    """Colour, 16 x 16, with a normalisation of its own in each channel."""
    data = {"kind": "image_folder", "path": str(folder), "size": 16, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    return ImageTask(configuration.parse({"task": {"data": data | {"crop": 0.8, "interpolation": "bicubic"}}}).task)


def digits() -> ImageTask:
    return ImageTask(configuration.parse({"task": {"data": {"kind": "digits"}}}).task)


@pytest.mark.parametrize("name", ["noise", "photographs", "digits"])
def test_what_is_built_in_is_far_and_prepared_as_the_tasks_images(task: ImageTask, name: str) -> None:
    outside = load_outside(name, task)
    assert outside.label == "far"
    assert check_outside(name, outside, task)
    assert len(outside.images) == (1797 if name == "digits" else ROWS)
    images, _ = outside.images.__getitems__([5, 0])
    assert images.shape == (2, 3, 16, 16)
    assert torch.equal(images[1], outside.images.__getitems__([0])[0][0])
    pixels = task.normalisation.undone(images)
    assert torch.allclose(task.normalisation.again(pixels), images, atol=1e-6)  # nothing was outside [0, 1]
    if name == "digits":  # grey: all channels are the same before normalisation
        assert torch.allclose(pixels[:, 0], pixels[:, 1], atol=1e-6)


def test_noise_is_uniform_in_every_channel(task: ImageTask) -> None:
    images, _ = load_outside("noise", task).images.__getitems__(range(200))
    pixels = task.normalisation.undone(images)
    for channel in range(3):
        values = pixels[:, channel].flatten()
        assert float(values.mean()) == pytest.approx(0.5, abs=4 * 12**-0.5 / len(values) ** 0.5)
        assert float(values.std()) == pytest.approx(12**-0.5, rel=0.01)


def test_a_folder_flat_or_nested_is_decoded_as_the_tasks_own_images(
    task: ImageTask, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bird").mkdir()
    shutil.copy(folder / "dog" / "0.png", tmp_path / "bird" / "a.png")
    picture(99).save(tmp_path / "b.png")
    outside = load_outside(f"near:{tmp_path}", task)
    assert (outside.label, outside.classes, len(outside.images)) == ("near", ("bird",), 2)
    row = [path.name for path in task.data.train.reader.files].index("0.png")  # type: ignore[attr-defined]
    own, _ = task.data.train.reader.read(np.array([row]))
    assert any(torch.equal(own[0], outside.images.__getitems__([place])[0][0]) for place in range(2))
    with pytest.raises(
        ConfigError, match=r"1 of its 2 images are among those of training.*a\.png \(the same as .*0\.png\)"
    ):
        check_outside("x", outside, task)
    (tmp_path / "bird" / "a.png").unlink()
    assert check_outside("x", load_outside(str(tmp_path), task), task)


def test_folders_that_are_called_as_classes_are_refused(task: ImageTask, tmp_path: Path) -> None:
    for name in ("Cat", "fish"):
        (tmp_path / name).mkdir()
        picture(50).save(tmp_path / name / "x.png")
    with pytest.raises(ConfigError, match="1 of its 2 folders are called as classes of training, such as 'Cat'"):
        check_outside("x", load_outside(str(tmp_path), task), task)


def test_the_digits_are_not_outside_of_themselves() -> None:
    task = digits()
    with pytest.raises(ConfigError, match=r"--ood digits: .* of its 1797 images are among those of training"):
        check_outside("digits", load_outside("digits", task), task)


def test_parquet_and_idx_are_read(task: ImageTask, folder: Path, tmp_path: Path) -> None:
    def encoded(seed: int) -> bytes:
        content = io.BytesIO()
        picture(seed).save(content, "PNG")
        return content.getvalue()

    table = pa.table({"image": [encoded(seed) for seed in (70, 71, 72)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    outside = load_outside(str(tmp_path / "x.parquet"), task)
    assert outside.images.__getitems__([2, 0])[0].shape == (2, 3, 16, 16)
    assert check_outside("x", outside, task)
    same = pa.table({"image": [(folder / "cat" / "1.png").read_bytes(), encoded(70)]})
    (tmp_path / "same").mkdir()
    pq.write_table(same, tmp_path / "same" / "y.parquet")
    with pytest.raises(ConfigError, match="1 of its 2 images are among"):
        check_outside("x", load_outside(str(tmp_path / "same"), task), task)
    (tmp_path / "idx").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    with gzip.open(tmp_path / "idx" / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">4i", 0x0803, 4, 28, 28) + pixels.tobytes())
    with gzip.open(tmp_path / "idx" / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">2i", 0x0801, 4) + bytes(4))
    images, _ = load_outside(str(tmp_path / "idx"), task).images.__getitems__([0, 3])
    assert images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "--ood nowhere: no such file or folder, and none of digits, noise, photographs"),
        ("near:empty", "--ood near:empty: no images in it"),
        ("text.parquet", "not a readable Parquet file"),
        ("other.parquet", "no column 'image' with encoded images; it has a"),
    ],
)
def test_what_is_no_set_of_images_is_refused(
    task: ImageTask, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no table")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match=message):
        load_outside(name, task)
