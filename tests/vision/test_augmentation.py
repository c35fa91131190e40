"""Augmented views: timm's transforms, a function of seed, epoch and row, the same whoever reads them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from proxscore.config import ConfigError, parse
from proxscore.training.data.batches import TrainingData
from proxscore.training.data.streamed import RayTrainingData
from proxscore.vision.augmentation import Augmentation, AugmentationConfig
from proxscore.vision.images import Normalisation
from proxscore.vision.task import VisionConfig

PLAIN = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(24):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    return tmp_path / "photos"


def task(data: dict[str, Any], **augmentation: Any) -> Any:
    config = parse({"task": {"data": data, "augmentation": augmentation}}).task
    assert isinstance(config, VisionConfig)
    return config.build()


def test_a_view_is_timms_transform_from_the_same_generators() -> None:
    settings = AugmentationConfig(preset="strong").settings
    view = Augmentation(settings, (3, 32, 32), PLAIN, "bilinear")(picture(), 7)
    theirs: Any = create_transform(
        (3, 32, 32),
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
        interpolation="bilinear",
        mean=PLAIN.mean,
        std=PLAIN.std,
        color_jitter=None,
    )
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert torch.equal(view, theirs(picture()))


def test_drawing_a_view_leaves_the_global_generators_alone_and_depends_on_its_seed_alone() -> None:
    augmentation = Augmentation(AugmentationConfig(preset="standard").settings, (3, 32, 32), PLAIN, "bilinear")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    views = [augmentation(picture(), seed) for seed in (1, 2, 1)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])


def test_a_flip_alone_is_the_centre_of_the_picture_or_its_mirror() -> None:
    flip = Augmentation(AugmentationConfig(hflip=0.5).settings, (3, 40, 40), PLAIN, "bilinear")
    centre = PLAIN(torch.from_numpy(np.asarray(picture())[:, 10:50].copy()).permute(2, 0, 1)[None])[0]
    seen = [flip(picture(), seed) for seed in range(20)]
    mirrored = [torch.allclose(view, centre.flip(2), atol=1e-6) for view in seen]
    assert all(a or torch.allclose(view, centre, atol=1e-6) for a, view in zip(mirrored, seen, strict=True))
    assert 2 < sum(mirrored) < 18


def read(rows: Any, epoch: int = 0, start: int = 0, processes: int = 0, rank: int = 0, world: int = 1) -> Tensor:
    data = TrainingData(rows, 6, rank, world, seed=3, processes=processes)
    return torch.cat([inputs for batches, _ in data.epoch(epoch, start) for inputs, _ in batches])


def test_views_are_the_same_in_loader_processes_after_a_stop_and_on_other_ranks(folder: Path) -> None:
    found = task({"kind": "image_folder", "path": str(folder), "size": 32}, preset="standard")
    rows = found.training_rows(3)
    whole = read(rows)
    assert torch.equal(read(rows, processes=2), whole)
    assert torch.equal(read(rows, start=1), whole[6:])
    halves = [read(rows, rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.stack([half[:6] for half in halves], 1).flatten(0, 1), whole[:12])
    assert not torch.equal(read(rows, epoch=1).sort(0).values, whole.sort(0).values)
    assert not torch.equal(read(found.training_rows(4)), whole)
    plain = read(found.data.train)
    assert plain.shape == whole.shape
    assert not torch.equal(plain, whole)


def test_evaluation_sees_the_images_as_they_are(folder: Path) -> None:
    data = {"kind": "image_folder", "path": str(folder), "size": 32}
    augmented, plain = task(data, preset="strong"), task(data)
    for part in ("train", "validation", "test"):
        rows = range(len(getattr(plain.data, part)))
        assert torch.equal(
            getattr(augmented.data, part).__getitems__(rows)[0], getattr(plain.data, part).__getitems__(rows)[0]
        )
    assert plain.training_rows(0) is plain.data.train


def test_images_in_memory_are_augmented_too_and_grey_ones_stay_grey() -> None:
    found = task({"kind": "digits"}, hflip=1.0)
    views = found.training_rows(0).__getitems__(range(50))[0]
    images = found.data.train.__getitems__(range(50))[0]
    assert views.shape == images.shape == (50, 1, 8, 8)
    # sixteen levels of grey as 256
    assert (views - images.flip(3)).abs().max() < 2 * 0.5 / 255 / 0.5 + 1e-6


@pytest.mark.usefixtures("ray_local")
def test_ray_data_shows_the_views_of_one_process(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.glob("*/*.png"))
    columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet", row_group_size=7)
    found = task({"kind": "parquet", "path": str(tmp_path / "train.parquet"), "size": 32}, preset="strong")
    streamed = RayTrainingData(found.streamed_rows(1, 1.0), 5, 0, 1, seed=3)
    for epoch in range(2):
        seen = torch.cat([inputs for batches, _ in streamed.epoch(epoch) for inputs, _ in batches])
        alone = read(found.training_rows(3), epoch=epoch)
        assert torch.equal(seen.flatten(1).sum(1).sort().values, alone.flatten(1).sum(1).sort().values)


def test_settings_that_timm_refuses_are_named() -> None:
    with pytest.raises(ConfigError, match=r"task\.augmentation with auto_augment=rond-m9: timm refuses it"):
        task({"kind": "digits"}, auto_augment="rond-m9")
    with pytest.raises(ConfigError, match="mixed images depend on each other"):
        parse({"task": {"mixup": 0.2}})
    for key, value in (("hflip", 2.0), ("preset", "medium"), ("scale", [0.5])):
        with pytest.raises(ConfigError, match=f"task.augmentation.{key}"):
            parse({"task": {"augmentation": {key: value}}})


def test_all_draws_of_a_step_see_the_same_views_and_the_next_epoch_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxscore.training.launch import run
    from proxscore.vision.image_task import ImageTask

    seen: list[float] = []
    build = ImageTask.build_model

    def watched(self: ImageTask, device: torch.device | None = None) -> Any:
        model = build(self, device)
        model.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].double().sum().item()) if torch.is_grad_enabled() else None
        )
        return model

    monkeypatch.setattr(ImageTask, "build_model", watched)
    method = {"kind": "proximal_score", "paired": True, "draws": 2, "initial_noise": 0.05}
    training = {"epochs": 2, "batch_size": 17, "workers": 0, "device": "cpu", "storage": str(tmp_path)}
    tree: dict[str, Any] = {
        "name": "views",
        "task": {
            "model": {"name": "small_cnn"},
            "data": {"kind": "image_folder", "path": str(folder), "size": 16},
            "augmentation": {"preset": "strong"},
        },
        "method": method,
        "training": training | {"loader_processes": 0, "validate_every": 2},
        "evaluation": {"draws": 1, "validation_draws": 1},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    config = parse(tree)
    rows = len(config.task.build().data.train)
    assert rows <= 17  # a step is an epoch
    run(config, lambda line: None)
    steps = seen[-8:]  # what came before looked at the network alone
    assert len(set(steps[:4])) == len(set(steps[4:])) == 1
    assert steps[0] != steps[4]
