"""Folders of image files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from proxscore.config import ConfigError
from proxscore.vision.data import load_images
from proxscore.vision.sources.image_folder import ImageFolderConfig


def write(folder: Path, count: int, seed: int, suffix: str = ".png", size: tuple[int, int] = (14, 10)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}{suffix}")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write(tmp_path / "cat", 12, 0)
    write(tmp_path / "dog", 8, 1, ".jpg")
    write(tmp_path / "dog" / "deeper", 2, 2)
    (tmp_path / "dog" / "notes.txt").write_text("passed over")
    (tmp_path / ".cache").mkdir()
    return tmp_path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for part, count in {"train": 6, "val": 2, "test": 3}.items():
        write(tmp_path / part / "cat", count, 3)
        write(tmp_path / part / "dog", count, 4)
    return tmp_path


def config(path: Path, **settings: Any) -> ImageFolderConfig:
    return ImageFolderConfig(kind="image_folder", path=path, **{"size": 6, **settings})


def expected_pixels(path: Path, size: int, mode: str) -> np.ndarray:
    """Shorter side to ``size``, centre crop: by PIL alone."""
    image = Image.open(path).convert(mode)
    scale = size / min(image.size)
    width, height = int(image.width * scale), int(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float64)
    return pixels.reshape(size, size, -1).transpose(2, 0, 1) / 255


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images_are_resized_cropped_and_normalised_as_pil_does_it(pool: Path, channels: int, mode: str) -> None:
    mean, std = [0.1, 0.2, 0.3][:channels], [0.5, 0.6, 0.7][:channels]
    data = load_images(config(pool, channels=channels, mean=mean, std=std))
    assert data.shape == (channels, 6, 6)
    assert data.classes == ("cat", "dog")
    files = [
        *sorted((pool / "cat").rglob("*.png")),
        *sorted(p for p in (pool / "dog").rglob("*.*") if ".txt" not in p.name),
    ]
    for part in (data.train, data.validation, data.test):
        images, labels = part.__getitems__(range(len(part)))
        for image, label, row in zip(images, labels, part.rows, strict=True):
            raw = expected_pixels(files[row], 6, mode)
            reference = (raw - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
            np.testing.assert_allclose(image.numpy(), reference, rtol=0, atol=1e-5)
            assert data.classes[label] == files[row].relative_to(pool).parts[0]


def test_a_pool_is_split_by_fractions_and_split_folders_are_kept(pool: Path) -> None:
    record = load_images(config(pool)).splits
    assert record["counts"] == {"train": 16, "validation": 2, "test": 4}
    assert record["fractions"] == {"validation": 0.1, "test": 0.2}


def test_split_folders_are_their_own_splits_and_missing_ones_are_drawn(split: Path) -> None:
    record = load_images(config(split)).splits
    assert record["counts"] == {"train": 12, "validation": 4, "test": 6}
    assert record["fractions"] == {}
    (split / "val").rename(split / "validation")
    assert load_images(config(split)).splits == record
    shutil.rmtree(split / "validation")
    record = load_images(config(split)).splits
    assert record["counts"] == {"train": 11, "validation": 1, "test": 6}
    assert record["fractions"] == {"validation": 0.1}


def test_an_unreadable_image_is_found_before_training_and_named(pool: Path) -> None:
    bad = pool / "dog" / "03.jpg"
    bad.write_bytes(b"no image")
    assert refusal(lambda: load_images(config(pool))) == f"{bad}: not a readable image: not in a known image format"
    png = pool / "cat" / "05.png"
    content = bytearray(png.read_bytes())
    content[len(content) // 2] ^= 0xFF  # a checksum fails
    png.write_bytes(content)
    bad.unlink()
    assert str(png) in refusal(lambda: load_images(config(pool)))


def test_an_image_cut_short_is_named_when_it_is_read(pool: Path) -> None:
    write(pool / "dog", 8, 1, ".jpg", size=(200, 200))
    bad = pool / "dog" / "03.jpg"
    bad.write_bytes(bad.read_bytes()[:-2000])
    data = load_images(config(pool))
    parts = (data.train, data.validation, data.test)
    message = refusal(lambda: [part.__getitems__(range(len(part))) for part in parts])
    assert message.startswith(f"{bad}: not a readable image: image file is truncated")


def test_sixteen_bit_images_are_refused_since_their_pixels_would_be_clipped(pool: Path) -> None:
    Image.fromarray(np.full((9, 9), 4000, dtype=np.uint16)).save(pool / "cat" / "deep.png")
    message = refusal(lambda: load_images(config(pool)))
    assert str(pool / "cat" / "deep.png") in message
    assert "8 bits" in message


def test_folders_that_are_no_data_set_are_refused_by_name(pool: Path, tmp_path: Path) -> None:
    empty = pool / "emu"
    empty.mkdir()
    assert f"{empty}: class folder without images" in refusal(lambda: load_images(config(pool)))
    assert "0 class folders" in refusal(lambda: load_images(config(empty)))
    assert f"task.data.path {tmp_path / 'no'}: no such folder" in refusal(lambda: load_images(config(tmp_path / "no")))


def test_split_folders_that_do_not_match_are_refused_by_name(split: Path) -> None:
    write(split / "test" / "emu", 1, 0)
    message = refusal(lambda: load_images(config(split)))
    assert message.startswith(f"{split / 'test'}: has class folder 'emu', unlike train")
    shutil.rmtree(split / "test" / "emu")
    shutil.rmtree(split / "val" / "dog")
    assert f"{split / 'val'}: lacks class folder 'dog'" in refusal(lambda: load_images(config(split)))
    (split / "val").rename(split / "valid")
    assert f"{split / 'valid'}: beside train only" in refusal(lambda: load_images(config(split)))
    shutil.rmtree(split / "valid")
    (split / "train").rename(split / "validation")
    assert "no folder named train" in refusal(lambda: load_images(config(split)))


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)
