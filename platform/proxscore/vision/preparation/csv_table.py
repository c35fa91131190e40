"""A CSV file of paths and labels: columns ``path``, ``label``, and ``split`` if it likes."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.config.files import check_regular
from proxscore.vision.preparation.collected import SPLITS, Collected, FilePictures, named_classes

_SPLITS = {**{split: split for split in SPLITS}, "val": "validation", "valid": "validation", "dev": "validation"}
_SEPARATORS = re.compile("[;|]")


def csv_table(source: Path, *, numbers: bool = False) -> Collected:
    """Paths count from the folder of the file. Several labels in a row are separated by ``;`` or ``|``.

    Args:
        numbers: labels are numbers, equally many in each row.

    Raises:
        ConfigError: a column, a label or an image is missing, or a split is unknown; names file and row.
    """
    rows = _rows(source)
    files: list[Path] = []
    names: list[str] = []
    labels: list[list[str]] = []
    splits: list[str] = []
    for where, row in rows:
        path = (row["path"] or "").strip()
        if not path:
            raise ConfigError(f"{where}: the path is missing")
        file = Path(os.path.abspath(source.parent / path))
        if not file.exists():
            raise ConfigError(f"{where}: no such file: {file}")
        check_regular(file, f"{where}: {file}")
        own = [label.strip() for label in _SEPARATORS.split(row["label"] or "")]
        if not all(own):
            raise ConfigError(f"{where}: a label is missing")
        files.append(file)
        names.append(path)
        labels.append(own)
        if "split" in row:
            split = (row["split"] or "").strip().lower()
            if split not in _SPLITS:
                raise ConfigError(f"{where}: split {split!r} is unknown; expected train, validation (or val) or test")
            splits.append(_SPLITS[split])
    if not files:
        raise ConfigError(f"{source}: has no rows")
    if splits and "train" not in splits:
        raise ConfigError(f"{source}: column 'split' has no row of train")
    if numbers:
        values = _numbers(labels, [where for where, _ in rows])
        called = ("label",) if values.shape[1] == 1 else tuple(f"label_{place}" for place in range(values.shape[1]))
        pictures = FilePictures(files, names)
        return Collected(pictures, [()] * len(files), called, splits or None, False, "CSV of paths and numbers", values)
    classes = named_classes([label for own in labels for label in own])
    number = {name: place for place, name in enumerate(classes)}
    places = [tuple(sorted({number[label] for label in own})) for own in labels]
    several = any(len(own) > 1 for own in labels)
    return Collected(FilePictures(files, names), places, classes, splits or None, several, "CSV of paths and labels")


def _numbers(labels: list[list[str]], where: list[str]) -> NDArray[np.float32]:
    """(N, D).

    Raises:
        ConfigError: what is no finite number, or another count of them than in the first row; names the row.
    """
    found = []
    for own, row in zip(labels, where, strict=True):
        try:
            values = [float(label) for label in own]
        except ValueError:
            raise ConfigError(f"{row}: label {';'.join(own)!r} is no number") from None
        if not np.isfinite(values).all():
            raise ConfigError(f"{row}: label {';'.join(own)} is not finite")
        if len(values) != len(labels[0]):
            raise ConfigError(f"{row}: {len(values)} numbers; the first row has {len(labels[0])}")
        found.append(values)
    return np.array(found, np.float32)


def _rows(source: Path) -> list[tuple[str, dict[str, str | None]]]:
    """Each row by column, and how errors name it."""
    try:
        check_regular(source)
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            missing = [name for name in ("path", "label") if name not in columns]
            if missing:
                shown = ", ".join(columns) or "none"
                raise ConfigError(f"{source}: no column {missing[0]!r}; it has {shown}: path and label are needed")
            reader.fieldnames = columns
            return [(f"{source}, row {number} (line {reader.line_num})", row) for number, row in enumerate(reader, 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{source}: cannot be read as CSV in UTF-8: {' '.join(str(error).split())}") from error
