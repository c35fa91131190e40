"""What the calibration split sets before anything is judged: a temperature, and the thresholds of prediction sets."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxscore.calibration.prediction_sets import (
    METHODS,
    SetSums,
    rows_needed,
    scores_of_classes,
    standard_error,
    threshold,
)
from proxscore.calibration.temperature import fit_temperature
from proxscore.config import ConfigError
from proxscore.posterior import CategoricalPredictive
from proxscore.report.gathering import gathered, summed
from proxscore.report.scored import Scored


def uniform_numbers(seed: int, split: str, rows: int) -> Tensor:
    """(rows,) float64 numbers in [0, 1): one for each row of a split, which depends on seed, split and row alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(split.encode()))
    return torch.rand(rows, dtype=torch.float64, generator=generator)


@dataclass
class Calibration:
    """The temperature that the split prefers, and by method the largest score that still enters a set.

    Attributes:
        rows: that were read, over all processes.
    """

    temperature: float
    thresholds: dict[str, float]
    rows: int


def calibrate(
    batches: Iterable[Scored], uniform: Tensor, coverage: float, split: str, device: torch.device
) -> Calibration:
    """Read the calibration split once; its probabilities (N, C) are kept until the temperature is found.

    A collective: every process calls it with its batches.

    Raises:
        ConfigError: fewer rows than the coverage needs could be read.
    """
    parts: list[CategoricalPredictive] = []
    scores: dict[str, list[Tensor]] = {method: [] for method in METHODS}
    for batch in batches:
        predictive = batch.predictive
        parts.append(predictive)
        for method in METHODS:
            of_classes = scores_of_classes(method, predictive.mean, uniform[batch.rows])
            scores[method].append(of_classes.gather(1, predictive.targets.unsqueeze(1)).squeeze(1))
    together = {method: gathered(torch.cat(own), device) for method, own in scores.items()}
    rows = len(together[METHODS[0]])
    if rows < rows_needed(coverage):
        raise ConfigError(
            f"--coverage {coverage:g} needs at least {rows_needed(coverage)} calibration rows; of the {split} split {rows} "
            "can be read"
        )
    temperature = fit_temperature(CategoricalPredictive.joined(parts), device)
    return Calibration(temperature, {method: threshold(own, coverage) for method, own in together.items()}, rows)


@dataclass
class Sets:
    """The prediction sets of rows that are judged, by method.

    Args:
        classes: number of classes.
        calibration: with the thresholds.
        uniform: numbers u of all rows of the split.
    """

    classes: int
    calibration: Calibration
    uniform: Tensor
    sums: dict[str, SetSums] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = {method: SetSums.empty(self.classes) for method in METHODS}

    def add(self, batch: Scored) -> None:
        """Add the rows of a batch."""
        for method, sums in self.sums.items():
            scores = scores_of_classes(method, batch.predictive.mean, self.uniform[batch.rows])
            sums.add(scores <= self.calibration.thresholds[method], batch.predictive.targets)

    def results(self, device: torch.device) -> dict[str, dict[str, object]]:
        """By method: threshold, coverage with its standard error, over all rows and by class, and sizes. A collective."""
        found: dict[str, dict[str, object]] = {}
        for method, own in self.sums.items():
            sums = SetSums(*(summed(values, device) for values in (own.rows, own.covered, own.sizes)))
            by_class = sums.covered / sums.rows
            found[method] = {
                "threshold": self.calibration.thresholds[method],
                "coverage": sums.coverage,
                "coverage_standard_error": float(standard_error(sums.coverage, sums.rows.sum())),
                "mean_size": sums.mean_size,
                "sizes": sums.sizes.long().tolist(),
                "coverage_by_class": by_class.tolist(),
                "coverage_standard_error_by_class": standard_error(by_class, sums.rows).tolist(),
            }
        return found
