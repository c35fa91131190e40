"""What is asked of a report."""

from __future__ import annotations

from dataclasses import dataclass

from proxscore.calibration.prediction_sets import rows_needed
from proxscore.config import ConfigError
from proxscore.vision.image_task import ImageTask

CALIBRATION = ("validation", "test")


@dataclass(frozen=True)
class Options:
    """Settings of a report.

    Attributes:
        split: that is judged.
        calibration: split whose rows set the temperature and the thresholds of prediction sets.
        draws: from the posterior; zero for the mean weights.
        coverage: of prediction sets.
        outside: sets of other images, ``[near:|far:]NAME|PATH``.
        shift_rows: rows of the split that are corrupted, drawn by the seed; none: all of them.
        seed: of corruptions, of the numbers u of prediction sets, and of the rows that are corrupted.
    """

    split: str = "test"
    calibration: str = "validation"
    draws: int = 16
    coverage: float = 0.9
    outside: tuple[str, ...] = ()
    shift_rows: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what no data could serve.

        Raises:
            ConfigError: names the option.
        """
        if not 0 < self.coverage < 1:
            raise ConfigError(f"--coverage is {self.coverage:g}; it must be between 0 and 1, such as 0.9")
        if self.split == self.calibration:
            raise ConfigError(
                f"--split {self.split}: these rows calibrate temperature and prediction sets, so they cannot judge them: take "
                f"another split, or --calibrate {'test' if self.split == 'validation' else 'validation'}"
            )
        if self.shift_rows is not None and self.shift_rows < 1:
            raise ConfigError(f"--shift-rows is {self.shift_rows}; it must be at least 1")
        if len(set(self.outside)) < len(self.outside):
            raise ConfigError(f"--ood names a set twice: {', '.join(self.outside)}")

    def check_rows(self, task: ImageTask) -> None:
        """Refuse a calibration split that is too small for the coverage.

        Raises:
            ConfigError: says how many rows are needed.
        """
        found, needed = len(getattr(task.data, self.calibration)), rows_needed(self.coverage)
        if found < needed:
            raise ConfigError(
                f"--coverage {self.coverage:g} needs at least {needed} calibration rows; the {self.calibration} split has {found}"
            )
