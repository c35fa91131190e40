"""Calibrated intervals of forecasts: thresholds that the validation windows set, and what they make of a predictive.

The method is :mod:`proxscore.calibration.conformal_forecasts`. Thresholds are saved with the posterior, in its description
(``validation.intervals``), beside the fingerprint of the validation split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxscore.calibration import conformal_forecasts as conformal
from proxscore.calibration.conformal_forecasts import LEVELS, Thresholds
from proxscore.calibration.interval_coverage import IntervalSums
from proxscore.config import ConfigError
from proxscore.forecasting.interval_ends import Scores, ends_of, first_steps, group_names
from proxscore.forecasting.predictive import ForecastChunk, ForecastPredictive, store
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.task import MAX_HORIZON, ConformalConfig

KEY = "intervals"  # of the posterior's description, in ``validation``


@dataclass(frozen=True)
class Interval:
    """Calibrated intervals of one level.

    Attributes:
        level: how often they hold the target.
        lower, upper: (N, H) float64, in units of the target.
        told: how they were calibrated.
    """

    level: float
    lower: Tensor
    upper: Tensor
    told: str

    def __repr__(self) -> str:
        windows, steps = self.lower.shape
        return f"{100 * self.level:g}% intervals of {windows} forecasts of {steps} steps, calibrated: {self.told}"


@dataclass(frozen=True)
class Judged:
    """What calibrated intervals cover of windows whose targets are known.

    Attributes:
        sums: over the windows of all ranks.
        thresholds: (L, N, H) of this rank's windows, where each has its own (``kind: adaptive``).
        after: what is calibrated by next.
    """

    sums: IntervalSums
    thresholds: Tensor | None
    after: Intervals


@dataclass(frozen=True)
class Intervals:
    """What a posterior's forecasts are calibrated by.

    Attributes:
        config: the settings that they were made by.
        thresholds: of the validation windows.
        past: steps before the origin that each of them had, of those that the network looks back to; windows with fewer are not
            such as these, and have no calibrated interval.
        adapted: those after the test windows, of ``kind: adaptive``.
    """

    config: ConformalConfig
    thresholds: Thresholds
    past: int
    adapted: Thresholds | None = None

    @classmethod
    def calibrated(
        cls,
        config: ConformalConfig,
        validation: ForecastPredictive,
        data: SeriesData,
        context: int,
        device: torch.device,
    ) -> Intervals:
        """From this rank's validation windows; all ranks call it, and all get the same.

        Args:
            context: steps that the network looks back to.
            device: that the process group can gather from.
        """
        found = Scores.of(validation, data, LEVELS, device)
        origins = found.times - first_steps(data)[found.series]
        names = group_names(data, config.groups)
        groups = None if names is None else [names[number] for number in found.series.tolist()]
        thresholds = Thresholds.of(found.values, found.observed, LEVELS, groups)
        return cls(config, thresholds, min(context, int(origins.min())))

    @property
    def current(self) -> Thresholds:
        """Thresholds of what comes after the data of training."""
        return self.adapted or self.thresholds

    @property
    def told(self) -> str:
        """How they were made, in a few words."""
        fewest, most = (int(each) for each in (self.thresholds.origins.min(), self.thresholds.origins.max()))
        count = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        text = f"split conformal by {count} validation windows at each step ahead"
        since = f", adapted to the targets since (gamma {self.config.gamma:g})"
        return text if self.config.kind == "split" else text + since

    def refusal(self, levels: Sequence[float]) -> str | None:
        """Say which of these levels have too few windows; none: all are known."""
        lacking = [level for level in levels if level in self.thresholds.refused]
        if not lacking:
            return None
        needed = ", ".join(f"{100 * level:g}% needs {self.thresholds.refused[level]}" for level in lacking)
        return (
            f"no calibrated intervals at {', '.join(f'{100 * level:g}%' for level in lacking)}: "
            f"{int(self.thresholds.origins.min())} validation windows at a step ahead are too few ({needed}): "
            "raise task.data.validation_windows"
        )

    def of_chunk(
        self, chunk: ForecastChunk, data: SeriesData, thresholds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(L, B, H) ends of calibrated intervals, at each of ``current.levels``.

        Args:
            thresholds: (L, B, H), where each window has its own; none: those of what comes next.
        """
        if thresholds is None:
            thresholds = self._of_groups(self.current, chunk, data)
        return self._moved(ends_of(chunk, self.current.levels), thresholds, chunk)

    def _moved(self, ends: tuple[Tensor, Tensor], thresholds: Tensor, chunk: ForecastChunk) -> tuple[Tensor, Tensor]:
        return conformal.moved(*ends, self._known(thresholds, chunk), chunk.width, chunk.least)

    def _of_groups(self, held: Thresholds, chunk: ForecastChunk, data: SeriesData) -> Tensor:
        return held.of_windows(self._groups(chunk.targets[:, 2, 0].long(), data))

    def _groups(self, series: Tensor, data: SeriesData) -> list[str | None]:
        """The group of each window, by the number of its series."""
        names = group_names(data, self.config.groups, strict=False)
        return [None if names is None else names[number] for number in series.tolist()]

    def _known(self, thresholds: Tensor, chunk: ForecastChunk) -> Tensor:
        """(L, B, H) thresholds, and NaN for windows whose past is shorter than any that calibrated."""
        return torch.where((chunk.targets[:, 3, 0] >= self.past)[:, None], thresholds, torch.nan)

    def along(
        self, predictive: ForecastPredictive, data: SeriesData, device: torch.device
    ) -> tuple[Tensor | None, Intervals]:
        """Thresholds (L, N, H) of this rank's windows, each by the targets before its origin, and what follows from all of them.

        Of ``kind: split`` none, and the same. All ranks call it.
        """
        if self.config.kind != "adaptive":
            return None, self
        found = Scores.of(predictive, data, self.thresholds.levels, device)
        used, after = conformal.tracked(
            self.thresholds,
            found.values,
            found.observed,
            found.times,
            self._groups(found.series, data),
            self.config.gamma,
            store(*found.values.shape),
        )
        own = used[:, found.first : found.first + len(predictive.targets)]
        return own, replace(self, adapted=after)

    def judged(self, predictive: ForecastPredictive, data: SeriesData, device: torch.device) -> Judged:
        """What intervals cover of this rank's windows, summed over all ranks, before and after calibration; all ranks call it.

        Windows that have no calibrated interval count nowhere.

        Args:
            device: that the process group can gather from.
        """
        levels, row = self.thresholds.levels, 0
        own, after = self.along(predictive, data, device)
        sums = IntervalSums.zeros(levels, predictive.targets.shape[2])
        for chunk in predictive.chunks():
            rows = slice(row, row := row + len(chunk.targets))
            held = self._of_groups(self.thresholds, chunk, data) if own is None else own[:, rows]
            ends = ends_of(chunk, levels)
            calibrated = self._moved(ends, held, chunk)
            observed = (chunk.targets[:, 1] > 0) & ~calibrated[0][0].isnan()
            sums += IntervalSums.of(levels, ends, calibrated, chunk.targets[:, 0].double(), observed)
        return Judged(sums.reduced(device), own, after)

    def as_json(self) -> dict[str, Any]:
        """What is saved; :meth:`of_json` reads it."""
        held = self.thresholds
        found = self.config.model_dump(mode="json") | {
            "past": self.past,
            "origins": held.origins.tolist(),
            "refused": {f"{level:g}": needed for level, needed in held.refused.items()},
            "thresholds": _table(held),
        }
        return found if self.adapted is None else found | {"adapted": _table(self.adapted)}

    @classmethod
    def of_json(cls, found: Any, horizon: int, where: str) -> Intervals:
        """What a posterior was saved with.

        Raises:
            ConfigError: it is not what :meth:`as_json` writes for this horizon; ``where`` is the file at fault.
        """
        try:
            config = ConformalConfig(**{key: found[key] for key in ("kind", "gamma", "groups")})
            origins = torch.tensor(found["origins"], dtype=torch.long)
            refused = {_level(level): int(needed) for level, needed in found["refused"].items()}
            if origins.shape != (horizon,) or config.kind == "none" or horizon > MAX_HORIZON:
                raise ValueError(f"origins of {len(origins)} steps for a horizon of {horizon}")
            tables = {key: _read(found[key], origins, refused) for key in ("thresholds", "adapted") if key in found}
            held, adapted = tables["thresholds"], tables.get("adapted")
            if adapted is not None and adapted.levels != held.levels:
                raise ValueError(
                    f"levels {list(adapted.levels)} of adapted ones, and {list(held.levels)} of the others"
                )
            return cls(config, held, int(found["past"]), adapted)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"{where}: validation.{KEY} are no thresholds of intervals: {text}") from error


def _table(held: Thresholds) -> dict[str, Any]:
    """By level the thresholds of all steps, pooled and by group; null where a group has none."""

    def by_level(values: Tensor) -> dict[str, Any]:
        rows = zip(held.levels, values.tolist(), strict=True)
        return {f"{level:g}": None if math.isnan(row[0]) else row for level, row in rows}

    return {"levels": by_level(held.pooled), "groups": {name: by_level(each) for name, each in held.by_group.items()}}


def _level(text: str) -> float:
    level = float(text)
    if not 0 < level < 1:
        raise ValueError(f"level {text}")
    return level


def _read(found: Mapping[str, Any], origins: Tensor, refused: Mapping[float, int]) -> Thresholds:
    levels = tuple(sorted(_level(text) for text in found["levels"]))

    def values(rows: Mapping[str, Any], gaps: bool) -> Tensor:
        empty = [math.nan] * len(origins)
        each = [rows[f"{level:g}"] if rows[f"{level:g}"] is not None else empty for level in levels]
        read = torch.tensor(np.array(each, dtype=np.float64).reshape(len(levels), len(origins)))
        known = read[~read.isnan()] if gaps else read
        if not bool((known >= conformal.LEAST - 1e-9).all() and known.isfinite().all()):
            raise ValueError("thresholds are finite numbers from -0.5 on")
        return read

    own = {str(name): values(rows, True) for name, rows in found["groups"].items()}
    return Thresholds(levels, values(found["levels"], False), origins, refused, own)
