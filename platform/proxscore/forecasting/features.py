"""What series carry beside their target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proxscore.config import ConfigError
from proxscore.forecasting.windows import Series


@dataclass(frozen=True)
class Features:
    """What series carry beside their target.

    Attributes:
        known: covariates that are known over the horizon.
        past: covariates that are not.
        categories: numbers of values of the static categories.
        real: static numbers.
    """

    known: int = 0
    past: int = 0
    categories: tuple[int, ...] = ()
    real: int = 0

    @classmethod
    def of(cls, series: Sequence[Series], categories: Sequence[int] | None = None) -> Features:
        """Of GluonTS entries, which must all carry the same.

        Args:
            series: the entries.
            categories: numbers of values; without, one more than the largest number that occurs.

        Raises:
            ConfigError: a series that carries something else than the first, or a category out of its range.
        """
        kinds = ("feat_dynamic_real", "past_feat_dynamic_real", "feat_static_cat", "feat_static_real")
        counts = [tuple(len(entry.get(kind, ())) for kind in kinds) for entry in series]
        for entry, count in zip(series, counts, strict=True):
            if count != counts[0]:
                raise ConfigError(
                    f"series {entry.get('item_id')} carries {count} of {', '.join(kinds)}; the first series {counts[0]}"
                )
        known, past, static, real = counts[0]
        values = np.array([entry.get("feat_static_cat", ()) for entry in series], dtype=np.int64).reshape(
            len(series), static
        )
        sizes = tuple(categories) if categories is not None else tuple((values.max(0) + 1).tolist())
        for row, column in np.argwhere((values < 0) | (values >= np.array(sizes, dtype=np.int64).reshape(1, -1))):
            raise ConfigError(
                f"series {series[row].get('item_id')}: static category {column} is {values[row, column]}, outside "
                f"0..{sizes[column] - 1}"
            )
        return cls(known, past, sizes, real)
