"""Small stand-ins of data sets of the literature in their official layouts, for tests."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, DTD, FGVCAircraft, Flowers102, OxfordIIITPet

RNG = np.random.default_rng(0)


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (12, 15, 3), dtype=np.uint8)).save(file)


def text(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def pets(root: Path) -> list[Any]:
    base = root / "oxford-iiit-pet"
    breeds = {"Abyssinian": (1, 1), "american_bulldog": (2, 2), "Bengal": (3, 1)}  # class and species, from 1
    for split, numbers in (("trainval", range(8)), ("test", range(8, 12))):
        rows = [(f"{breed}_{number}", *of) for breed, of in breeds.items() for number in numbers]
        for name, _, _ in rows:
            picture(base / "images" / f"{name}.jpg")
        text(base / "annotations" / f"{split}.txt", [f"{name} {label} {species} 1" for name, label, species in rows])
    return [[OxfordIIITPet(root, "trainval")], [OxfordIIITPet(root, "test")]]


def flowers102(root: Path) -> list[Any]:
    base, files = root / "flowers-102", dict(Flowers102._file_dict)
    order = RNG.permutation(30) + 1
    for number in order:
        picture(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": (np.arange(30) % 102 + 1)[None]})
    savemat(base / "setid.mat", {"trnid": order[None, :10], "valid": order[None, 10:20], "tstid": order[None, 20:]})
    for key, (name, _) in files.items():
        if name.endswith(".mat"):
            files[key] = name, hashlib.md5((base / name).read_bytes()).hexdigest()
    Flowers102._file_dict = (
        files  # the stand-ins are no official files; the fixture puts back what is expected of these
    )
    return [[Flowers102(root, "train"), Flowers102(root, "val")], [Flowers102(root, "test")]]


def aircraft(root: Path) -> list[Any]:
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ["Boeing 737-700", "A340-200", "DC-10"]
    text(data / "variants.txt", variants)
    for split, numbers in (("trainval", range(12)), ("test", range(12, 18))):
        for number in numbers:
            picture(data / "images" / f"{number:07d}.jpg")
        text(data / f"images_variant_{split}.txt", [f"{number:07d} {variants[number % 3]}" for number in numbers])
    return [[FGVCAircraft(root, "trainval")], [FGVCAircraft(root, "test")]]


def dtd(root: Path) -> list[Any]:
    base = root / "dtd" / "dtd"
    for split, numbers in (("train", range(4)), ("val", range(4, 8)), ("test", range(8, 12))):
        names = [f"{texture}/{texture}_{number:04d}.jpg" for texture in ("banded", "zigzagged") for number in numbers]
        for name in names:
            picture(base / "images" / name)
        text(base / "labels" / f"{split}1.txt", names)
    return [[DTD(root, "train"), DTD(root, "val")], [DTD(root, "test")]]


PHOTOGRAPHS = {"pets": pets, "flowers102": flowers102, "aircraft": aircraft, "dtd": dtd}


def cifar(root: Path, name: str) -> None:
    """The same images as torchvision's pickles and in the binary version, which differ in form alone."""
    ten = name == "cifar10"
    theirs = CIFAR10 if ten else CIFAR100
    binary = root / ("cifar-10-batches-bin" if ten else "cifar-100-binary")
    python = root / theirs.base_folder
    for folder in (binary, python):
        folder.mkdir(parents=True)
    classes = [f"thing {number}" for number in range(10 if ten else 100)]
    text(binary / ("batches.meta.txt" if ten else "fine_label_names.txt"), [*classes, ""])
    for split in (theirs.train_list, theirs.test_list):
        for entry in split:
            pixels = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)
            labels, coarse = RNG.integers(0, len(classes), 6), RNG.integers(0, 20, 6)
            content = {"data": pixels, "labels" if ten else "fine_labels": labels.tolist()}
            (python / entry[0]).write_bytes(pickle.dumps(content))
            columns = [labels[:, None]] if ten else [coarse[:, None], labels[:, None]]
            (binary / f"{entry[0]}.bin").write_bytes(np.hstack([*columns, pixels]).astype(np.uint8).tobytes())
    (python / theirs.meta["filename"]).write_bytes(pickle.dumps({theirs.meta["key"]: classes}))
