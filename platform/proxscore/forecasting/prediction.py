"""What a saved posterior says of series: forecasts with their uncertainties apart, quantiles, and calibrated intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.forecasting.forecasts import table
from proxscore.forecasting.intervals import Interval, Intervals
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.remarks import Remarks
from proxscore.forecasting.series import SeriesData
from proxscore.tasks.predictions import QUANTILES, Prediction

INTERVALS = (0.9,)  # levels of the intervals in tables, where they can be had


@dataclass(repr=False)
class SeriesPrediction(Prediction):
    """What comes after each series, or after each of several origins in it: H steps.

    Attributes:
        predictive: of the steps.
        series: that were continued.
        calibration: of intervals; none: the posterior was saved without.
        thresholds: (L, N, H) of origins whose targets are known, where each has its own, by what came to be known before it.
        known: whether the targets are known.
        remarks: on the series.
    """

    predictive: ForecastPredictive
    series: SeriesData
    calibration: Intervals | None = None
    thresholds: Tensor | None = None
    known: bool = field(default=False, kw_only=True)
    remarks: Remarks = field(default_factory=Remarks, kw_only=True)

    def __len__(self) -> int:
        return len(self.predictive.targets)

    def __repr__(self) -> str:
        told = self._told("windows" if self.known else "series")
        return told if self.calibration is None else f"{told}\nintervals: {self.calibration.told}"

    @property
    def mean(self) -> Tensor:
        """(N, H), in units of the target."""
        return torch.cat([chunk.mean for chunk in self.predictive.chunks()])

    @property
    def unlike(self) -> Tensor | None:
        """(N,) bool, whether what lies before a forecast is unlike what came before those of training: the network continues what
        it has not seen; none: it cannot tell. See :mod:`proxscore.forecasting.distances`."""
        return self.predictive.unlike

    @property
    def aleatoric(self) -> Tensor | None:
        """(N, H), variance of the noise, averaged over draws; none where the network does not tell it."""
        return self._variance("aleatoric")

    @property
    def epistemic(self) -> Tensor | None:
        """(N, H), variance over draws of the mean; none where the network does not tell it."""
        return self._variance("epistemic")

    @property
    def total(self) -> Tensor | None:
        """(N, H), variance of noise and weights together."""
        noise, weights = self.aleatoric, self.epistemic
        return None if noise is None or weights is None else noise + weights

    def _variance(self, name: str) -> Tensor | None:
        parts = [getattr(chunk, name) for chunk in self.predictive.chunks()]
        return None if any(part is None for part in parts) else torch.cat(parts)

    def quantiles(self, probabilities: Sequence[float] = QUANTILES) -> Tensor:
        """(Q, N, H), in units of the target."""
        return torch.cat([chunk.quantiles(probabilities) for chunk in self.predictive.chunks()], 1)

    def interval(self, level: float = 0.9) -> Interval:
        """Intervals that hold the target with this probability, on windows like those of validation, at each step ahead.

        They are calibrated, which :meth:`quantiles` are not: those are what the model itself says. A series whose past is shorter
        than that of any validation window has none: NaN. See :mod:`proxscore.calibration.conformal_forecasts`.

        Raises:
            ConfigError: this level was not calibrated; says how many validation windows it needs, and how many there were.
        """
        return self.intervals([level])[0]

    def intervals(self, levels: Sequence[float]) -> list[Interval]:
        """:meth:`interval` at each of some levels."""
        if self.calibration is None:
            raise ConfigError(
                "no intervals were calibrated when the posterior was saved (task.conformal.kind=none, or an older version)"
            )
        held, known = self.calibration, self.calibration.current
        for level in levels:
            known.check(level)
        if not levels:
            return []
        parts, row = [], 0
        for chunk in self.predictive.chunks():
            rows = slice(row, row := row + len(chunk.targets))
            own = None if self.thresholds is None else self.thresholds[:, rows]
            parts.append(held.of_chunk(chunk, self.series, own))
        lower, upper = (torch.cat([part[side] for part in parts], 1) for side in (0, 1))
        places = [known.levels.index(level) for level in levels]
        return [
            Interval(level, lower[place], upper[place], held.told) for level, place in zip(levels, places, strict=True)
        ]

    def part(self, rows: Sequence[int]) -> SeriesPrediction:
        """Some of its rows alone."""
        chosen = list(rows)
        thresholds = None if self.thresholds is None else self.thresholds[:, chosen]
        return replace(self, predictive=self.predictive.part(chosen), thresholds=thresholds)

    def served(self, levels: Sequence[float] = INTERVALS) -> list[float]:
        """Those of some levels that were calibrated."""
        return [level for level in levels if self.calibration is not None and level in self.calibration.current.levels]

    def calibrated(self, levels: Sequence[float] = INTERVALS) -> list[Interval]:
        """:meth:`interval` at those of some levels that were calibrated."""
        served = self.served(levels)
        return self.intervals(served) if served else []

    def table(self, quantiles: Sequence[float] = QUANTILES, levels: Sequence[float] = INTERVALS) -> pa.Table:
        """A row per series and step; see :func:`proxscore.forecasting.forecasts.table`. Levels that were not calibrated lack."""
        return table(self.predictive, self.series, quantiles, self.calibrated(levels), rolling=self.known)

    def columns(
        self,
        *,
        all: bool = False,
        quantiles: Sequence[float] = QUANTILES,
        levels: Sequence[float] = INTERVALS,
        **options: Any,
    ) -> dict[str, Any]:
        """A row per series and step: ``series, timestamp, step, mean, aleatoric_sd, epistemic_sd``, quantiles ``q0.05``,
        calibrated intervals ``lower_90, upper_90``, and ``unlike_training``, where they can be had."""
        return dict(self.table(quantiles, levels).to_pandas().items())
