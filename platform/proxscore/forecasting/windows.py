"""Windows of series as pairs of tensors: all inputs of a network in one vector, and the steps that follow as targets.

GluonTS says what a network takes (``describe_inputs``) and how its inputs come from a series (the estimator's
transformation, applied once per series). A window with origin t holds the past_length steps before t and the H steps
from t on; its fields are cut as GluonTS's instance splitters cut them, zeros standing for what lies before the series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from gluonts.transform import Transformation
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from proxscore.config import ConfigError

Series = Mapping[str, Any]  # an entry of a GluonTS data set
Rows = NDArray[np.int64]

ENOUGH = 100  # training windows with a whole past, above which a series has no others

_OWN = ("feat_dynamic_real", "past_feat_dynamic_real")  # time fields that the TFT takes by the name the series has


@dataclass(frozen=True)
class Field:
    """An input of a network.

    Attributes:
        name: the keyword of the network's forward.
        source: the field of a transformed series that it is cut from; empty: windows say it themselves.
        shape: of one window, (steps,), (steps, features), or (features,) where it does not depend on time.
        dtype: what the network takes.
        first: step of its first entry, counted from the origin; None where it does not depend on time.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    first: int | None

    @property
    def size(self) -> int:
        """Numbers of one window."""
        return math.prod(self.shape)


FOLD = Field("fold", "", (1,), torch.float32, None)  # block of time that a training window is in, from 1; 0: none


OBSERVED = "context_observed_values"  # which steps of the past are observed, of networks that do not ask


def given(horizon: int) -> Field:
    """Mean and standard deviation of each step by a method that forecasts windows one by one."""
    return Field("anchor", "", (horizon, 2), torch.float32, None)


@dataclass(frozen=True)
class Packing:
    """How the inputs of a window lie in one float32 vector of F numbers: field after field, time before features.

    Integers come back exactly up to 2^24.
    """

    fields: tuple[Field, ...]

    @classmethod
    def of(cls, inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]], horizon: int) -> Packing:
        """From names, shapes (without the batch) and dtypes; inputs without a number are left out.

        A name with ``past_`` lies before the origin, one with ``future_`` from it on, ``feat_dynamic_real`` on both sides.
        """
        fields = []
        for name, (shape, dtype) in inputs.items():
            source, first = name, None
            if name.startswith("future_"):
                source, first = name.removeprefix("future_"), 0
            elif name.startswith("past_"):
                source, first = name if name in _OWN else name.removeprefix("past_"), -shape[0]
            elif name in _OWN:
                first = horizon - shape[0]
            fields.append(Field(name, source, tuple(shape), dtype, first))
        return cls(tuple(field for field in fields if field.size))

    @property
    def size(self) -> int:
        """F."""
        return sum(field.size for field in self.fields)

    @property
    def past(self) -> int:
        """Steps before the origin that some field reaches back to."""
        return max(0, *(-field.first for field in self.fields if field.first is not None))

    def start(self, field: Field) -> int | None:
        """Where a field begins in a vector; none: it is not in it."""
        before = 0
        for each in self.fields:
            if each == field:
                return before
            before += each.size
        return None

    def unpack(self, inputs: Tensor) -> dict[str, Tensor]:
        """(B, F) to the network's keywords."""
        parts = inputs.split([field.size for field in self.fields], 1)
        return {
            field.name: part.reshape(len(inputs), *field.shape).to(
                field.dtype if field.dtype == torch.long else part.dtype
            )
            for field, part in zip(self.fields, parts, strict=True)
        }

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unpack`: (B, ...) by name to (B, F) float32."""
        return torch.cat([values[field.name].flatten(1).float() for field in self.fields], 1)


class Panel:
    """Series after a network's transformation, in memory once for all splits.

    Args:
        series: GluonTS entries: target (T,) with NaN where it is missing, start, item_id, and as the data have them
            feat_dynamic_real (K, T or more), past_feat_dynamic_real (P, T), feat_static_cat, feat_static_real.
        transformation: the estimator's.
        packing: of the network.
        horizon: H.
        forecast: gives (H, 2), mean and standard deviation of each step, of a series by number at an origin, where the
            packing has the field :func:`given`.
        beyond: steps after the end of each series that windows may reach, as missing targets; H for forecasts of what
            comes after the data. Known covariates must go as far.

    Raises:
        ConfigError: known covariates that end before the steps they are needed for; names the series.
    """

    def __init__(
        self,
        series: Sequence[Series],
        transformation: Transformation,
        packing: Packing,
        horizon: int,
        beyond: int = 0,
        forecast: Callable[[int, int], NDArray[np.float32]] | None = None,
    ) -> None:
        self.packing, self.horizon, self.forecast = packing, horizon, forecast
        self.ids = [str(entry.get("item_id", number)) for number, entry in enumerate(series)]
        self.lengths: Rows = np.array([len(entry["target"]) + beyond for entry in series], dtype=np.int64)
        extended = [_extend(entry, name, beyond) for entry, name in zip(series, self.ids, strict=True)]
        time = {field.source: field.first is not None for field in packing.fields if field.source}
        time |= {"target": True, "observed_values": True}
        self._fields = [
            {source: self._array(entry[source], moving) for source, moving in time.items()}
            for entry in transformation.apply(extended, is_train=True)
        ]

    def _array(self, value: Any, moving: bool) -> NDArray[np.float32]:
        """(past + T, D) with zeros before the series, or (D,)."""
        array = np.asarray(value, dtype=np.float32)
        if not moving:
            return array
        array = np.atleast_2d(array).T
        return np.concatenate([np.zeros((self.packing.past, array.shape[1]), np.float32), array])

    def fill(self, inputs: NDArray[np.float32], targets: NDArray[np.float32], series: int, origin: int) -> None:
        """Write the window of a series at an origin into vectors (F,) and (2, H)."""
        fields, now, start = self._fields[series], self.packing.past + origin, 0
        for field in self.packing.fields:
            if not field.source:
                start += field.size
                continue
            value = fields[field.source]
            if field.first is not None:
                value = value[now + field.first : now + field.first + field.shape[0]]
            inputs[start : start + field.size] = value.reshape(-1)
            start += field.size
        for row, source in enumerate(("target", "observed_values")):
            targets[row] = fields[source][now : now + self.horizon, 0]
        targets[0] *= targets[1]


def _extend(entry: Series, name: str, beyond: int) -> dict[str, Any]:
    """The entry with ``beyond`` missing steps more, and known covariates cut to its length."""
    target = np.asarray(entry["target"], dtype=np.float32)
    length = len(target) + beyond
    result = {**entry, "target": np.concatenate([target, np.full(beyond, np.nan, np.float32)])}
    if "feat_dynamic_real" in entry:
        known = np.asarray(entry["feat_dynamic_real"], dtype=np.float32)
        if known.shape[1] < length:
            raise ConfigError(
                f"series {name}: its known covariates end after {known.shape[1]} steps; they are needed for {length}"
            )
        result["feat_dynamic_real"] = known[:, :length]
    if "past_feat_dynamic_real" in entry:  # never read from the origin on
        past = np.asarray(entry["past_feat_dynamic_real"], dtype=np.float32)
        result["past_feat_dynamic_real"] = np.pad(past, ((0, 0), (0, length - past.shape[1])))
    return result


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Some windows of a panel. ``__getitems__`` makes a whole batch: inputs (B, F) and targets (B, 4, H), float32.

    Targets are values, observed flags (1 or 0), and, the same at each step, the series' number and the window's origin
    (exact up to 2^24); the value of a missing step is 0.

    Args:
        panel: the series.
        index: (N, 2) int64, series number and origin; item i is the window whose first step to forecast is step
            ``index[i, 1]`` of its series, counted from 0.
        folds: (N,) the block of time that each window is in, from 1; without, the windows are in none.

    Raises:
        ConfigError: a window that reaches beyond its series; names the series.
    """

    def __init__(self, panel: Panel, index: Rows, folds: Rows | None = None) -> None:
        ends = index[:, 1] + panel.horizon
        bad = np.flatnonzero((index[:, 1] < 0) | (ends > panel.lengths[index[:, 0]]))
        if bad.size:
            series, origin = index[bad[0]].tolist()
            raise ConfigError(
                f"series {panel.ids[series]}: a window of {panel.horizon} steps from step {origin} on reaches beyond its "
                f"{panel.lengths[series]} steps"
            )
        self.panel, self.index, self.folds = panel, index, folds
        self._fold, self._given = panel.packing.start(FOLD), panel.packing.start(given(panel.horizon))

    @property
    def series(self) -> Tensor:
        """(N,) int64, series number of each window."""
        return torch.from_numpy(self.index[:, 0].copy())

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([item])
        return inputs[0], targets[0]

    def __getitems__(self, items: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch; a DataLoader calls this, with a collate function that returns what it is given."""
        inputs = np.empty((len(items), self.panel.packing.size), np.float32)
        targets = np.empty((len(items), 4, self.panel.horizon), np.float32)
        for row, item in enumerate(items):
            self.panel.fill(inputs[row], targets[row, :2], *self.index[item].tolist())
            targets[row, 2:] = self.index[item][:, None]
        if self._fold is not None:
            inputs[:, self._fold] = 0 if self.folds is None else self.folds[list(items)]
        if self._given is not None:
            self._forecasts(inputs, items)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def _forecasts(self, inputs: NDArray[np.float32], items: Sequence[int]) -> None:
        """Write what the panel's method forecasts of each window; zeros without one."""
        assert self._given is not None
        wide = slice(self._given, self._given + 2 * self.panel.horizon)
        for row, item in enumerate(items):
            found = None if self.panel.forecast is None else self.panel.forecast(*self.index[item].tolist())
            inputs[row, wide] = 0 if found is None else found.reshape(-1)


def folds(index: Rows, count: int) -> Rows:
    """(N,) the block of time, from 1 to ``count``, that each training window is in: equal parts of its series' origins."""
    table = pd.Series(index[:, 1]).groupby(index[:, 0])
    first, last = table.transform("min").to_numpy(), table.transform("max").to_numpy()
    place: Rows = (index[:, 1] - first) * count // (last - first + 1)
    return place + 1


def training_index(
    ends: Sequence[int], horizon: int, *, past: int = 1, least: int | None = None, stride: int = 1
) -> Rows:
    """(N, 2): in each series the origins end - H, end - H - stride, ... in ascending order, that have ``past`` steps before.

    A series that gives fewer than ``ENOUGH`` of them has those with ``least`` steps before, and in any case one window, at
    end - H; what a network looks back to beyond the series' beginning is missing.

    Args:
        ends: steps of each series that belong to training.
        horizon: H.
        past: steps before an origin.
        least: steps before an origin of a short series; by default as many as of others.
        stride: steps between origins.
    """
    needed = [past if end - horizon - past >= ENOUGH * stride else min(past, least or past) for end in ends]
    origins = [
        np.arange(end - horizon, min(steps, max(end - horizon, 1)) - 1, -stride, dtype=np.int64)[::-1]
        for end, steps in zip(ends, needed, strict=True)
    ]
    return np.concatenate(
        [np.empty((0, 2), np.int64), *(np.stack([np.full_like(o, s), o], 1) for s, o in enumerate(origins))]
    )
