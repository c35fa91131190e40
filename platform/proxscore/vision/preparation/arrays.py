"""NumPy archives: arrays of images and labels under the names that Keras, MedMNIST and others use. Nothing is unpickled."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.config.files import check_regular
from proxscore.vision.preparation.collected import ArrayPictures, Collected, named_classes

_PARTS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_NAMES = {"x": "images", "images": "images", "y": "labels", "labels": "labels"}
_NAME = re.compile("(?:(?P<before>[a-z]+)_)?(?P<what>x|y|images|labels)(?:_(?P<after>[a-z]+))?")


def numpy_archive_help() -> str:
    return "x and y, or images and labels; for splits x_train, x_test, ... or train_images, val_images, ..."


def numpy_arrays(source: Path, *, numbers: bool = False) -> Collected:
    """Arrays ``x`` and ``y`` (or ``images`` and ``labels``), alone or once for each split (``x_train``, ``train_images``, ...).

    Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; labels are integers or texts, (N,).

    Args:
        numbers: labels are numbers, (N,) or (N, D).

    Raises:
        ConfigError: no such archive or arrays, arrays of another type or shape, or that do not fit each other.
    """
    found = _arrays(source)
    parts: list[tuple[str, str, NDArray[np.uint8]]] = []
    labels: list[Any] = []
    splits: list[str] = []
    for part in [part for part in ("all", "train", "validation", "test") if part in found]:
        arrays = found[part]
        for what in ("images", "labels"):
            if what not in arrays:
                raise ConfigError(
                    f"{source}: no {what}{'' if part == 'all' else f' of {part}'}; expected {numpy_archive_help()}"
                )
        (name, pixels), (label_name, values) = arrays["images"], arrays["labels"]
        where = f"{source}, {name}"
        parts.append((where, "image" if part == "all" else part, _pixels(pixels, where)))
        own = (_values if numbers else _labels)(values, f"{source}, {label_name}")
        if len(own) != len(pixels):
            raise ConfigError(f"{source}: {len(own)} labels in {label_name} for {len(pixels)} images in {name}")
        labels += own
        splits += [part] * len(own)
    if "all" in found and len(found) > 1:
        raise ConfigError(f"{source}: has arrays of splits, and others that are of none; keep either")
    if "all" not in found and "train" not in found:
        raise ConfigError(f"{source}: no images of train; it has those of {', '.join(found)}")
    if not labels:
        raise ConfigError(f"{source}: holds no images")
    if numbers:
        return _of_numbers(labels, parts, None if "all" in found else splits)
    classes = named_classes(labels)
    number = {name: place for place, name in enumerate(classes)}
    places: list[tuple[int, ...]] = [(number[str(label)],) for label in labels]
    return Collected(ArrayPictures(parts), places, classes, None if "all" in found else splits, False, "NumPy archive")


def _of_numbers(labels: list[Any], parts: Any, splits: list[str] | None) -> Collected:
    values = np.array(labels, np.float32)
    count = values.shape[1]
    called = ("label",) if count == 1 else tuple(f"label_{place}" for place in range(count))
    return Collected(ArrayPictures(parts), [()] * len(values), called, splits, False, "NumPy archive", values)


def _values(array: NDArray[Any], where: str) -> list[Any]:
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or 0 in array.shape[1:]:
        raise ConfigError(f"{where}: labels are {array.dtype} of shape {array.shape}; expected numbers, (N,) or (N, D)")
    rows = array.reshape(len(array), -1).astype(np.float32)
    if len(bad := np.flatnonzero(~np.isfinite(rows).all(1))):
        raise ConfigError(f"{where}, row {int(bad[0])}: the label is not finite")
    return list(rows.tolist())


def _arrays(source: Path) -> dict[str, dict[str, tuple[str, NDArray[Any]]]]:
    """Arrays by split and by what they are, with their names."""
    found: dict[str, dict[str, tuple[str, NDArray[Any]]]] = {}
    try:
        check_regular(source)
        with np.load(source, allow_pickle=False) as archive:
            for name in archive.files:
                match = _NAME.fullmatch(name.lower())
                part = (match["before"] or match["after"]) if match else None
                if match and (part is None or part in _PARTS):
                    found.setdefault(_PARTS[part] if part else "all", {})[_NAMES[match["what"]]] = name, archive[name]
            shown = ", ".join(archive.files) or "none"
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        AttributeError,
    ) as error:
        reason = " ".join(str(error).split())
        if "pickle" in reason.lower():
            reason = "an array of Python objects, which only a pickle can hold, is not read"
        raise ConfigError(f"{source}: not a readable NumPy archive: {reason}") from error
    if not found:
        raise ConfigError(f"{source}: has arrays {shown}; expected {numpy_archive_help()}")
    return found


def _pixels(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise ConfigError(f"{where}: images are {array.dtype}; give uint8, from 0 (black) to 255")
    if array.ndim == 4 and array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, -1)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 3)) or 0 in array.shape[1:]:
        raise ConfigError(
            f"{where}: images of shape {array.shape}; expected (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)"
        )
    return array


def _labels(array: NDArray[Any], where: str) -> list[Any]:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ConfigError(f"{where}: labels of shape {array.shape}; expected one per image, (N,)")
    if array.dtype.kind not in "iuU":
        raise ConfigError(f"{where}: labels are {array.dtype}; expected integers or texts")
    found: list[Any] = array.tolist()
    if "" in found:
        raise ConfigError(f"{where}, row {found.index('')}: the label is missing")
    return found
