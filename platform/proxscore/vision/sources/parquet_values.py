"""Numbers as the targets of images: a numeric column of Parquet files, or lists of equally many numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.vision.sources.parquet_labels import LabelColumn


def are_fractions(kind: Any) -> bool:
    """Whether a column's type is that of numbers which no class has: with a fraction, or lists of these."""
    return bool(pa.types.is_floating(_inner(kind)) or pa.types.is_decimal(_inner(kind)))


def are_numbers(kind: Any) -> bool:
    """Whether a column's type is that of numbers, or of lists of numbers."""
    return are_fractions(kind) or bool(pa.types.is_integer(_inner(kind)))


def values_of(column: LabelColumn, name: str) -> NDArray[np.float32]:
    """The numbers of a file, (N, D).

    Args:
        name: of the column.

    Raises:
        ConfigError: a value that is null or not finite, or lists of different lengths; names file and row.
    """
    values = column.values
    if values.null_count:
        raise ConfigError(
            f"{column.path}, row {pc.index(values.is_null(), True).as_py()}: {name} is null; a number is needed"
        )
    length = 1
    if column.listed:
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        length = int(lengths[0]) if len(lengths) else 1
        if len(wrong := np.flatnonzero(lengths != length)) or length < 1:
            row = int(wrong[0]) if len(wrong) else 0
            raise ConfigError(f"{column.path}, row {row}: {name} has {lengths[row]} numbers; expected {max(length, 1)}")
        values = pc.list_flatten(values)
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, length)
    if len(bad := np.flatnonzero(~np.isfinite(numbers).all(1))):
        raise ConfigError(
            f"{column.path}, row {int(bad[0])}: {name} is {numbers[bad[0]].tolist()}; finite numbers are needed"
        )
    return np.ascontiguousarray(numbers)


def _inner(kind: Any) -> Any:
    return kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
