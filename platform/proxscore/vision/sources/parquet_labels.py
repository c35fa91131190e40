"""Labels of Parquet files and the names of their classes, as Hugging Face's ``datasets`` and others write them.

A label is an integer, a text, or, of several labels per image, a list of these. Names of integers are those of the schema's
metadata, key ``huggingface``, which says of the column ``{"_type": "ClassLabel", "names": [...]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proxscore.config import ConfigError
from proxscore.vision.images import check_labels
from proxscore.vision.splits import Rows

MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class LabelColumn:
    """The label column of a file as it lies there, and the names that the file's schema gives to its integers."""

    path: Path
    values: Any  # an Arrow array
    names: tuple[str, ...] | None

    @property
    def listed(self) -> bool:
        """Whether a row has a list of labels."""
        return _is_list(self.values.type)

    @property
    def texts(self) -> bool:
        return _is_text(self.values.type.value_type if self.listed else self.values.type)

    def largest(self) -> int:
        """The largest of its integers; -1: it has none."""
        values = pc.list_flatten(self.values) if self.listed else self.values
        largest = pc.max(values).as_py()
        return -1 if largest is None else int(largest)


def check_label_type(path: Path, column: str, kind: Any) -> None:
    """Refuse a column that holds no labels.

    Raises:
        ConfigError: names the file, the column, and what would be right.
    """
    inner = kind.value_type if _is_list(kind) else kind
    if not (pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_decimal(inner) or _is_text(inner)):
        raise ConfigError(
            f"{path}: column {column!r} is {kind}; labels must be integers, texts or numbers, or lists of these"
        )


def label_column(path: Path, column: str, values: Any, metadata: Mapping[bytes, bytes] | None) -> LabelColumn:
    """The labels of a file, of a type that :func:`check_label_type` has passed."""
    joined = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(joined, pa.ChunkedArray):  # of no chunk at all
        joined = pa.array([], values.type)
    if pa.types.is_dictionary(joined.type):
        joined = joined.dictionary_decode()
    return LabelColumn(path, joined, names_of(metadata, column))


def names_of(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel column, or of a list of ClassLabels, by a schema's metadata; none: it has none."""
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
        feature = feature.get("feature", feature)
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # no such key, or no JSON of this form
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def class_names(columns: list[LabelColumn], training: list[LabelColumn], classes: int | None) -> tuple[str, ...]:
    """The names of the classes of some files: those of their schemas, their sorted distinct texts, or the numbers as texts.

    Args:
        columns: of all files.
        training: of those to train on, whose texts are the classes.
        classes: the number of classes, where the configuration says it.

    Raises:
        ConfigError: integers without names whose number is not known, files that differ, fewer than two classes.
    """
    first = columns[0]
    for column in columns:
        for what, own, others in (("texts", column.texts, first.texts), ("lists", column.listed, first.listed)):
            if own != others:
                raise ConfigError(
                    f"{column.path}: labels are {'' if own else 'no '}{what}, unlike those of {first.path.name}"
                )
    if first.texts:
        names = _distinct(training)
    else:
        named = [column for column in columns if column.names]
        for column in named:
            if column.names != named[0].names:
                raise ConfigError(f"{column.path}: names of classes differ from those of {named[0].path.name}")
        if not named and classes is None:
            raise ConfigError(
                f"{first.path}: labels are integers without names: set task.data.classes, their number (labels are 0..classes-1)"
            )
        names = tuple(named[0].names or ()) if named else tuple(str(number) for number in range(classes or 0))
    if classes is not None and classes != len(names):
        raise ConfigError(f"{first.path}: has {len(names)} classes; task.data.classes is {classes}: leave it out")
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ConfigError(f"{first.path}: two classes are named {twice!r}")
    if not 2 <= len(names) <= MOST_CLASSES:
        raise ConfigError(f"{first.path}: has {len(names)} classes; expected 2 to {MOST_CLASSES:,}")
    return names


def numbered(column: LabelColumn, names: tuple[str, ...]) -> Rows:
    """The labels of a file as numbers of classes: (N,) int64, or, where rows have lists, (N, C) of 0 and 1 (uint8).

    Raises:
        ConfigError: a label that is null, unknown, or outside 0..C-1; names file and row.
    """
    rows, values = np.arange(len(column.values)), column.values
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise ConfigError(f"{column.path}, row {row}: the label is null; {_expected(column, names)}")
    if column.listed:
        rows = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(values)
        if values.null_count:
            row = rows[pc.index(values.is_null(), True).as_py()]
            raise ConfigError(f"{column.path}, row {row}: a label is null; {_expected(column, names)}")
    if column.texts:
        found = pc.index_in(values, value_set=pa.array(names, values.type))
        if found.null_count:
            place = pc.index(found.is_null(), True).as_py()
            label = values[place].as_py()
            raise ConfigError(f"{column.path}, row {rows[place]}: label {label!r} is of no class of the training files")
        numbers = found.to_numpy()
    else:
        numbers = values.to_numpy()
        check_labels(numbers, len(names), lambda place: f"{column.path}, row {rows[place]}")
    if not column.listed:
        return numbers.astype(np.int64)
    matrix = np.zeros((len(column.values), len(names)), np.uint8)
    matrix[rows, numbers.astype(np.int64)] = 1
    return matrix  # type: ignore[return-value]


def _distinct(columns: list[LabelColumn]) -> tuple[str, ...]:
    found: set[str] = set()
    for column in columns:
        values = pc.list_flatten(column.values) if column.listed else column.values
        found |= set(pc.unique(values).to_pylist())
    return tuple(sorted(name for name in found if name is not None))


def _expected(column: LabelColumn, names: tuple[str, ...]) -> str:
    return "expected the name of a class" if column.texts else f"expected 0..{len(names) - 1}"


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
