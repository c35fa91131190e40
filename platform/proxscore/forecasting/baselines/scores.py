"""Scores of Gaussian forecasts in closed form, summed over the windows of one series after another, in one process."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from proxscore.calibration.crps import crps_gaussian
from proxscore.calibration.smape import symmetric_percentage_error
from proxscore.forecasting.baselines.history import Values

COVERED = 1.6448536269514722  # standard deviations, of the half of a central interval of 90 %


@dataclass
class Scores:
    """Means over the observed steps of all windows so far, by the names that :class:`ForecastMetrics` gives them."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, mean: Values, spread: Values, values: NDArray[np.floating], season_error: float) -> None:
        """Add windows of a series.

        Args:
            mean, spread: (W, H).
            values: (W, H) of what happened, NaN where missing.
            season_error: the scale of MASE; a series that has none does not count in it.
        """
        observed = ~np.isnan(values)
        m, s, y = (torch.from_numpy(np.asarray(each[observed], np.float64)) for each in (mean, spread, values))
        error, z = (y - m).abs(), (y - m) / s
        terms = {
            "crps": crps_gaussian(m, s, y),
            "nll": 0.5 * z.square() + s.log() + 0.5 * math.log(2 * math.pi),
            "mae": error,
            "smape": symmetric_percentage_error(m, y),
            "coverage_90": (z.abs() <= COVERED).double(),
        }
        if math.isfinite(season_error) and season_error > 0:
            terms["mase"] = error / season_error
        for name, each in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(each.sum())
            self.counts[name] = self.counts.get(name, 0) + len(each)

    def means(self) -> dict[str, float]:
        """By name; a metric of which there is no step is left out."""
        return {name: self.sums[name] / count for name, count in self.counts.items() if count}
