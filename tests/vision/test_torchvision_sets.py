"""Data sets of the literature on small stand-ins in the official layouts: the same files, labels and order as torchvision's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_sets import PHOTOGRAPHS, cifar, dtd, pets
from torchvision.datasets import CIFAR10, CIFAR100, Flowers102

from proxscore.config import ConfigError
from proxscore.vision.data import load_images
from proxscore.vision.images import MemoryReader
from proxscore.vision.sources.image_folder import FolderReader
from proxscore.vision.sources.torchvision_sets import TorchvisionConfig, load


@pytest.fixture(autouse=True)
def _official_hashes() -> Any:
    before = Flowers102._file_dict
    yield
    Flowers102._file_dict = before


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_those_of_torchvision_in_its_order(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = PHOTOGRAPHS[name](tmp_path)
    source = load(TorchvisionConfig(name=name, path=tmp_path, size=12, mean=0.0, std=1.0))  # type: ignore[arg-type]
    assert source.classes == tuple(splits[0][0].classes)
    assert source.shape == (3, 12, 12)
    for part, readers in zip(("train", "test"), splits, strict=True):
        expected = [item for reader in readers for item in reader]
        pool = source.pools[part]
        assert isinstance(pool, FolderReader)
        assert pool.labels.tolist() == [label for _, label in expected]
        found, _ = pool.read(np.arange(len(expected)))
        for image, (theirs, _) in zip(found, expected, strict=True):
            middle = np.asarray(theirs)[:, 2:14]  # 15 wide, of which the centre is kept
            np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), middle / 255, rtol=0, atol=1e-6)
    assert "results are not comparable" in caplog.text  # a stand-in has few images


def test_validation_is_drawn_of_the_training_images(tmp_path: Path) -> None:
    pets(tmp_path)
    data = load_images(TorchvisionConfig(name="pets", path=tmp_path, size=12, validation_fraction=0.5))
    assert data.splits["counts"] == {"train": 12, "validation": 12, "test": 12}
    assert data.splits["fractions"] == {"validation": 0.5}
    assert np.bincount(data.validation.labels).tolist() == [4, 4, 4]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_binary_version_of_cifar_is_what_torchvision_reads_of_the_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar(tmp_path, name)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    source = load(TorchvisionConfig(name=name, path=tmp_path, mean=0.0, std=1.0))  # type: ignore[arg-type]
    assert source.shape == (3, 32, 32)
    for part, train in (("train", True), ("test", False)):
        theirs = (CIFAR10 if name == "cifar10" else CIFAR100)(tmp_path, train=train)
        assert source.classes == tuple(theirs.classes)
        pool = source.pools[part]
        assert isinstance(pool, MemoryReader)
        assert pool.labels.tolist() == theirs.targets
        np.testing.assert_array_equal(pool.pixels.permute(0, 2, 3, 1).numpy(), theirs.data)


def test_cifar_in_another_size_is_resized_and_in_its_own_it_is_the_same_either_way(tmp_path: Path) -> None:
    cifar(tmp_path, "cifar10")
    settings = {"name": "cifar10", "path": tmp_path, "mean": 0.2, "std": 0.3}
    rows = np.array([3, 0, 29])
    plain = load(TorchvisionConfig(**settings)).pools["train"].read(rows)[0]
    large = load(TorchvisionConfig(**settings, size=64)).pools["train"].read(rows)[0]
    assert large.shape == (3, 3, 64, 64)
    back = torch.nn.functional.interpolate(large, (32, 32), mode="area")
    assert (back - plain).abs().mean() < 0.5  # smoothed noise is like the noise, and unlike that of other rows
    assert (back - plain.roll(1, 0)).abs().mean() > 0.8
    cropped = load(TorchvisionConfig(**settings, crop=0.999)).pools["train"].read(rows)[0]
    assert torch.equal(cropped, plain)


@pytest.mark.parametrize("name", [*PHOTOGRAPHS, "cifar10", "cifar100"])
def test_a_file_that_is_missing_is_named_with_its_archive(name: str, tmp_path: Path) -> None:
    (PHOTOGRAPHS.get(name) or (lambda root: cifar(root, name)))(tmp_path)
    gone = {
        "pets": ("oxford-iiit-pet/annotations/test.txt", "annotations.tar.gz"),
        "flowers102": ("flowers-102/setid.mat", "setid.mat"),
        "aircraft": ("fgvc-aircraft-2013b/data/variants.txt", "fgvc-aircraft-2013b.tar.gz"),
        "dtd": ("dtd/dtd/labels/val1.txt", "dtd-r1.0.1.tar.gz"),
        "cifar10": ("cifar-10-batches-bin/data_batch_4.bin", "cifar-10-binary.tar.gz"),
        "cifar100": ("cifar-100-binary/test.bin", "cifar-100-binary.tar.gz"),
    }
    file, archive = gone[name]
    (tmp_path / file).unlink()
    with pytest.raises(ConfigError) as refusal:
        load(TorchvisionConfig(name=name, path=tmp_path))  # type: ignore[arg-type]
    assert str(refusal.value).startswith(f"{tmp_path / file}: is missing; it comes with {archive}")


def test_the_pickles_of_cifar_are_not_read_and_the_other_archive_is_named(tmp_path: Path) -> None:
    cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-bin").rename(tmp_path / "away")
    with pytest.raises(
        ConfigError, match=r"pickles, which are not read: unpack the binary version \(cifar-10-binary\.tar\.gz\b"
    ):
        load(TorchvisionConfig(name="cifar10", path=tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "cifar10",
            "cifar-10-batches-bin/test_batch.bin",
            b"x" * 5000,
            "5000 bytes are no whole number of rows of 3073",
        ),
        (
            "cifar10",
            "cifar-10-batches-bin/test_batch.bin",
            b"\xff" * 3073,
            "test_batch.bin, row 0: label 255 is outside 0..9",
        ),
        ("cifar10", "cifar-10-batches-bin/batches.meta.txt", b"one\n", "names 1 classes; expected 10"),
        ("flowers102", "flowers-102/setid.mat", b"MATLAB", "not the official files of '102 Category Flower Dataset'"),
        ("pets", "oxford-iiit-pet/annotations/test.txt", b"one two\n", "the test list is not of the official form"),
        ("pets", "oxford-iiit-pet/annotations/test.txt", b"a_1 9 1 1\n", "classes of pets differ between its splits"),
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", b"12 Concorde\n", "not of the official form"),
        ("dtd", "dtd/dtd/labels/test1.txt", b"banded/banded_0001.jpg\n", "classes of dtd differ between its splits"),
    ],
)
def test_files_of_another_form_are_refused(name: str, file: str, content: bytes, message: str, tmp_path: Path) -> None:
    (PHOTOGRAPHS.get(name) or (lambda root: cifar(root, name)))(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        load(TorchvisionConfig(name=name, path=tmp_path))  # type: ignore[arg-type]
    assert message in str(refusal.value)


def test_an_image_that_is_missing_is_named_before_training(tmp_path: Path) -> None:
    dtd(tmp_path)
    (tmp_path / "dtd/dtd/images/banded/banded_0002.jpg").unlink()
    with pytest.raises(ConfigError, match=r"banded_0002\.jpg: cannot be read"):
        load_images(TorchvisionConfig(name="dtd", path=tmp_path, size=12))
