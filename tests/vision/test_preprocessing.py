"""Images as they are meant to be seen: upright, and prepared as pretrained weights expect them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from proxscore.config import Config, parse
from proxscore.vision.data import load_images
from proxscore.vision.image_task import ImageTask
from proxscore.vision.ray_data import Share, StreamedRows
from proxscore.vision.sources.image_folder import ImageFolderConfig
from proxscore.vision.task import ModelConfig, VisionConfig

ORIENTATION = 0x0112


def picture(seed: int) -> Image.Image:
    """Not symmetric under any turn."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8))


def encoded(image: Image.Image, orientation: int, form: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shots() -> list[tuple[str, bytes, np.ndarray]]:
    """(suffix, bytes, upright pixels by PIL alone) of every orientation in three formats."""
    found = []
    for number, (form, suffix) in enumerate((("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"))):
        for orientation in range(1, 9):
            content = encoded(picture(10 * number + orientation), orientation, form)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
            assert upright is not None
            found.append((suffix, content, np.asarray(upright.convert("RGB"))))
    return found


def test_a_folder_shows_images_upright(tmp_path: Path, shots: list[tuple[str, bytes, np.ndarray]]) -> None:
    for number, (suffix, content, _) in enumerate(shots):
        file = tmp_path / "ab"[number % 2] / f"{number:02d}.{suffix}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    config = ImageFolderConfig(kind="image_folder", path=tmp_path, size=24, mean=0.0, std=1.0)
    data = load_images(config)
    order = [*range(0, len(shots), 2), *range(1, len(shots), 2)]
    for part in (data.train, data.validation, data.test):
        images, _ = part.__getitems__(range(len(part)))
        for image, row in zip(images, part.rows, strict=True):
            np.testing.assert_array_equal((image * 255).round().numpy().transpose(1, 2, 0), shots[order[row]][2])


@pytest.mark.usefixtures("ray_local")
def test_parquet_files_and_ray_data_show_images_upright(
    tmp_path: Path, shots: list[tuple[str, bytes, np.ndarray]]
) -> None:
    columns = {"image": [content for _, content, _ in shots], "label": [i % 2 for i in range(len(shots))]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    tree = {"kind": "parquet", "path": str(tmp_path), "classes": 2, "size": 24, "mean": 0.0, "std": 1.0}
    config = parse({"task": {"data": tree}}).task
    assert isinstance(config, VisionConfig)
    data = load_images(config.data)
    expected = np.stack([shots[row][2] for row in data.train.rows])
    alone, _ = data.train.__getitems__(range(len(data.train)))
    streamed = StreamedRows(data.train, Share(1.0, 1e8)).read([np.arange(len(data.train))])
    together = np.concatenate([chunk["image"] for chunk in streamed])
    for images in (alone.numpy(), together):
        np.testing.assert_array_equal((images * 255).round().transpose(0, 2, 3, 1), expected)


def test_an_image_whose_exif_data_are_broken_is_shown_as_it_lies(tmp_path: Path) -> None:
    image = picture(0)
    for label in "ab":
        for number in range(8):
            (tmp_path / label).mkdir(exist_ok=True)
            image.save(tmp_path / label / f"{number}.png", exif=b"Exif\0\0 no such data")
    data = load_images(ImageFolderConfig(kind="image_folder", path=tmp_path, size=24, mean=0.0, std=1.0))
    shown = (data.train[0][0] * 255).round().numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(shown, np.asarray(image))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (90, 70, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_efficientnet"])
def test_images_for_pretrained_weights_are_prepared_as_timm_prepares_them(
    name: str, photos: Path, tmp_path: Path
) -> None:
    network = timm.create_model(name, num_classes=2)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    size = 64 if name == "resnet18" else network.pretrained_cfg["input_size"][-1]
    task = ImageTask(
        VisionConfig(
            model=ModelConfig(name=name, weights=tmp_path / "w.safetensors"),
            data=ImageFolderConfig(kind="image_folder", path=photos, size=size),
        )
    )
    settings = resolve_data_config({"input_size": (3, size, size)}, model=network)
    reference = create_transform(**settings, is_training=False)
    files = sorted(photos.rglob("*.png"))
    images, _ = task.data.train.__getitems__(range(len(task.data.train)))
    for image, row in zip(images, task.data.train.rows, strict=True):
        torch.testing.assert_close(image, reference(Image.open(files[row])), rtol=0, atol=1e-5)  # type: ignore[operator]
    recorded = task.config.data
    assert isinstance(recorded, ImageFolderConfig)
    assert recorded.mean == pytest.approx(list(settings["mean"]))
    again = ImageTask(VisionConfig(model=ModelConfig(name=name), data=recorded))  # as a saved posterior has it
    torch.testing.assert_close(again.data.train[0][0], task.data.train[0][0], rtol=0, atol=0)


def test_what_the_configuration_says_of_the_preparation_counts(photos: Path, tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", num_classes=2).state_dict(), tmp_path / "w.safetensors")
    given = {"mean": 0.25, "std": [0.1, 0.2, 0.3], "interpolation": "lanczos", "crop": 0.5}
    config = VisionConfig(
        model=ModelConfig(name="resnet18", weights=tmp_path / "w.safetensors"),
        data=ImageFolderConfig(kind="image_folder", path=photos, size=32, **given),  # type: ignore[arg-type]
    )
    assert ImageTask(config).config.data == config.data


def test_without_pretrained_weights_the_preparation_is_plain(photos: Path) -> None:
    data = ImageTask(
        VisionConfig(model=ModelConfig(name="resnet18"), data=ImageFolderConfig(kind="image_folder", path=photos))
    ).config.data
    assert isinstance(data, ImageFolderConfig)
    assert (data.mean, data.std, data.interpolation, data.crop) == (0.5, 0.5, "bilinear", 1.0)
    assert Config().task.data.mean is None
