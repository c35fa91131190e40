"""Bad input to jobs/train.py: one line that names what is at fault and what would be right, before training starts."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main, Trained


@pytest.fixture
def refused(train: Main, small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Start the job with more overrides: it must refuse and leave nothing; returns the line without "error: "."""

    def start(*overrides: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert train([*small, *overrides]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return error.removeprefix("error: ").rstrip("\n")

    return start


@pytest.mark.parametrize(
    ("override", "key", "right"),
    [
        ("training.epoch=3", "training.epoch", "epochs"),
        ("method.pairred=true", "method.pairred", "paired"),
        ("method.penalty.precison=3", "method.penalty.precison", "precision"),
        ("task.data.split_sed=3", "task.data.split_sed", "split_seed"),
        ("trainig.epochs=3", "trainig", "training"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_valid_one(refused, override: str, key: str, right: str) -> None:  # type: ignore[no-untyped-def]
    line = refused(override)
    assert f"unknown key {key!r}" in line
    assert f"did you mean {right!r}?" in line


def test_an_unknown_key_that_is_near_to_none_is_answered_with_the_valid_ones(refused) -> None:  # type: ignore[no-untyped-def]
    line = refused("training.xyz=3")
    assert "unknown key 'training.xyz'" in line
    for key in ("epochs", "batch_size", "workers"):
        assert key in line


@pytest.mark.parametrize(
    ("override", "key", "value", "right"),
    [
        ("training.epochs=three", "training.epochs", "'three'", "number"),
        ("training.workers=-1", "training.workers", "-1", "greater than or equal to 0"),
        ("training.workers=1.5", "training.workers", "1.5", "integer"),
        ("training.compile=perhaps", "training.compile", "'perhaps'", "boolean"),
        ("training.precision=fp8", "training.precision", "'fp8'", "'fp32' or 'bf16'"),
        ("method.momentum=1", "method.momentum", "1", "less than 1"),
        ("method.kind=vi", "method.kind", "'vi'", "'proximal_score', 'adamw'"),
        ("task.model.kwargs=4", "task.model.kwargs", "4", "dictionary"),
        ("name=a/b", "name", "'a/b'", "pattern"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_what_would_be_right(  # type: ignore[no-untyped-def]
    refused, override: str, key: str, value: str, right: str
) -> None:
    line = refused(override)
    assert f"{key} is {value}" in line
    assert right in line


def test_an_override_without_a_value_and_a_configuration_that_is_none_are_refused(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "write key=value" in refused("training.epochs")
    assert "'seed' is a value, not a section" in refused("seed=1", "seed.epochs=3")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "broken.yaml").write_text("training: {epochs: 3")
    assert "missing.yaml: No such file" in refused("--config", "missing.yaml")
    assert "list.yaml: expected keys and values, got a list" in refused("--config", "list.yaml")
    assert "broken.yaml: not valid YAML" in refused("--config", "broken.yaml")


def test_a_model_that_timm_does_not_know_is_answered_with_the_nearest_names(refused) -> None:  # type: ignore[no-untyped-def]
    line = refused("task.model.name=resnet19", "task.model.kwargs={}")
    assert "'resnet19'" in line
    assert "resnet18" in line


def test_a_keyword_that_the_model_refuses_and_images_that_it_cannot_take_are_named(refused) -> None:  # type: ignore[no-untyped-def]
    assert "widht" in refused("task.model.kwargs={widht: 3}")
    line = refused("task.model.name=vit_tiny_patch16_224", "task.model.kwargs={}")
    assert "cannot take 1x8x8 images" in line


@pytest.mark.parametrize("kind", ["idx", "image_folder", "parquet"])
def test_a_data_set_that_is_not_there_is_named(refused, kind: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    line = refused(
        f"task.data.kind={kind}", "task.data.path=nowhere", *(["task.data.classes=2"] if kind == "parquet" else [])
    )
    assert f"task.data.path {tmp_path / 'nowhere'}: no such" in line


def test_an_unreadable_image_is_named(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(tmp_path / "data" / label / f"{number}.png")
    (tmp_path / "data" / "b" / "7.png").write_bytes(b"no image")
    line = refused("task.data.kind=image_folder", "task.data.path=data", "task.data.size=8", "task.data.channels=1")
    assert line.startswith(f"{tmp_path / 'data' / 'b' / '7.png'}: not a readable image")


def test_labels_outside_the_class_range_are_named_with_file_and_row(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "data").mkdir()
    labels = np.arange(50, dtype=np.uint8) % 3
    images = struct.pack(">4i", 0x0803, 50, 8, 8) + bytes(50 * 64)
    (tmp_path / "data" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (tmp_path / "data" / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x0801, 50) + labels.tobytes())
    line = refused("task.data.kind=idx", "task.data.path=data", "task.data.classes=2")
    assert line == f"{tmp_path}/data/train-labels-idx1-ubyte, row 2: label 2 is outside 0..1"


def test_more_training_images_than_there_are_is_refused(refused) -> None:  # type: ignore[no-untyped-def]
    assert "task.data.limit is 99999; there are " in refused("task.data.limit=99999")


@pytest.mark.usefixtures("ray_local")
def test_more_workers_than_the_cluster_can_place_is_refused(refused) -> None:  # type: ignore[no-untyped-def]
    line = refused("training.workers=99")
    assert line.startswith("training.workers=99 at 1 CPUs each need 99 CPUs; the cluster can have 4")


def test_a_result_file_in_a_folder_that_is_not_there_is_refused_before_training(refused) -> None:  # type: ignore[no-untyped-def]
    assert refused("--result", "nowhere/result.json").startswith(
        "--result nowhere/result.json: the folder nowhere does not"
    )


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("task.model.kwargs={width: 8, hidden: 8}", "task.model.kwargs.width=4, now it is 8"),
        ("task.model.name=resnet18", "task.model.name=small_cnn, now it is resnet18"),
        ("method.prior.scale=0.5", "method.prior.scale="),
        ("training.batch_size=25", "training.batch_size=50, now it is 25"),
    ],
)
def test_a_name_that_was_used_with_another_architecture_or_settings_is_refused(
    train: Main,
    trained: Trained,
    override: str,
    key: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(trained.folder)
    overrides = [*trained.overrides, *(["task.model.kwargs={}"] if "resnet" in override else []), override]
    assert train(overrides) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run 'small' in ")
    assert f"was started with {key}" in error
    assert error.count("\n") == 1


def test_a_process_of_its_own_exits_with_2_and_one_line(small: list[str], repository: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "jobs" / "train.py"), *small, "training.epoch=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: command line: unknown key 'training.epoch'; did you mean 'epochs'?\n"
