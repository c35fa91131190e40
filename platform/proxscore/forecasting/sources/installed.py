"""Series that Python packages bring, so that nothing has to be downloaded when a job runs."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxscore.config import ConfigError
from proxscore.config.extras import needs
from proxscore.forecasting.frequencies import Grid


def consecutive(times: Any, grid: Grid, source: str) -> NDArray[np.datetime64]:
    """Times (N,) in nanoseconds, which must be consecutive steps."""
    values = np.asarray(times, dtype="datetime64[ns]")
    steps, exact = grid.steps(values)
    if not (exact.all() and np.array_equal(steps, np.arange(len(values)))):
        raise ConfigError(
            f"{source}: its times are not consecutive steps of {grid.frequency}; another version of the package?"
        )
    return values


def module(name: str, kind: str, package: str) -> ModuleType:
    """A package's module that brings the data of a kind.

    Raises:
        ConfigError: the package is not installed.
    """
    what = f"task.data.kind={kind}, whose data it brings,"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(needs(what, package, "data")) from error
