"""What a request to the server may hold, and what it is refused for, in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from proxscore.config import ConfigError
from proxscore.predictor.pyfunc import RETURNS
from proxscore.tasks.predictions import QUANTILES

_KEYS = ("images", "series", "dataframe_split", "dataframe_records", "params", "draws", "seed", "return", "quantiles")


@dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    Attributes:
        rows: images, or rows of a long table.
        draws: of the posterior.
        bytes: of its body.
    """

    rows: int = 256
    draws: int = 64
    bytes: int = 32 * 2**20


class RefusedError(ConfigError):
    """A request that is not answered; ``status`` is HTTP's."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Request:
    """A request that makes sense.

    Attributes:
        table: of images or series, as the posterior's model takes it.
        draws, seed: none: as the posterior was judged by.
        all: with a column for each class.
        quantiles: of numbers and series.
    """

    table: pd.DataFrame
    draws: int | None = None
    seed: int | None = None
    all: bool = False
    quantiles: tuple[float, ...] = field(default=QUANTILES)

    @property
    def alike(self) -> tuple[Any, ...]:
        """What requests that are predicted together have in common."""
        return self.draws, self.seed, self.all, self.quantiles, tuple(self.table.columns)


def parsed(body: bytes, takes: str, limits: Limits) -> Request:
    """Read a request: ``{"images": [...]}`` or ``{"series": [{...}, ...]}``, or a table as MLflow's servers take it.

    Args:
        takes: images or series.

    Raises:
        RefusedError: it is no such request, or larger than is allowed.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is no JSON: {' '.join(str(error).split())[:100]}") from None
    if not isinstance(content, Mapping):
        raise RefusedError(f'the body is a {type(content).__name__}; give {{"{takes}": [...]}}')
    for key in content:
        if key not in _KEYS:
            raise RefusedError(f"unknown key {key!r:.50}; known are {', '.join(_KEYS)}")
    options = dict(content.get("params") or {}) if isinstance(content.get("params") or {}, Mapping) else None
    if options is None:
        raise RefusedError("params must be an object")
    options |= {key: content[key] for key in ("draws", "seed", "return", "quantiles") if key in content}
    table = _table(content, takes)
    if not len(table):
        raise RefusedError(f"there are no {takes} in it: give at least one")
    if len(table) > limits.rows:
        raise RefusedError(f"{len(table)} rows; a request has at most {limits.rows}", 413)
    wanted = options.pop("return", RETURNS[0])
    if wanted not in RETURNS:
        raise RefusedError(f"return is {wanted!r:.50}; it must be one of {', '.join(RETURNS)}")
    draws, seed = (_whole(options.pop(key, None), key) for key in ("draws", "seed"))
    if draws is not None and draws > limits.draws:
        raise RefusedError(f"draws is {draws}; a request has at most {limits.draws}")
    quantiles = options.pop("quantiles", list(QUANTILES))
    if options:
        raise RefusedError(f"unknown parameter {next(iter(options))!r:.50}; known are draws, seed, return, quantiles")
    return Request(table, draws, seed, wanted == "all", _quantiles(quantiles))


def _table(content: Mapping[str, Any], takes: str) -> pd.DataFrame:
    given = [key for key in ("images", "series", "dataframe_split", "dataframe_records") if key in content]
    if len(given) != 1 or (given[0] in ("images", "series") and given[0] != takes):
        has = ", ".join(given) or "neither"
        raise RefusedError(f"give {takes}, dataframe_records or dataframe_split, one of them; the body has {has}")
    value = content[given[0]]
    try:
        if given[0] == "images":
            if not isinstance(value, list):
                raise TypeError("images is a list of base64 texts, or of arrays")
            return pd.DataFrame({"image": pd.Series(value, dtype=object)})
        if given[0] == "dataframe_split":
            return pd.DataFrame(value["data"], columns=value["columns"])
        if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
            raise TypeError(f"{given[0]} is a list of objects, one for each row")
        return pd.DataFrame.from_records(value)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise RefusedError(f"{given[0]}: no table: {' '.join(str(error).split())[:150]}") from None


def _whole(value: Any, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RefusedError(f"{name} is {value!r:.50}; it must be a whole number, zero or more")
    return value


def _quantiles(values: Any) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        found = ()
    if not found or len(found) > 100 or len(set(found)) < len(found) or not all(0 < value < 1 for value in found):
        raise RefusedError("quantiles is a list of at most 100 different numbers between 0 and 1")
    return found
