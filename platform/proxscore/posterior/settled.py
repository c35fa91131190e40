"""How many draws a prediction takes, where that is left to the draws themselves.

An average over S draws has a Monte Carlo error, whose standard deviation the draws tell: sd / sqrt(S). Draws are added until
the largest one in a batch is below a tolerance:

    S = 16, 24, 36, ...    until    max over rows and classes of sd_s(p(c | x, theta_s)) / sqrt(S) <= tolerance

For numbers it is the error of the predictive mean and of its standard deviation, in units of that standard deviation: where
that is all of the weights and none of noise, its tolerance of 0.1 takes a hundred draws.

What that means: each probability is within the tolerance of the average over infinitely many draws with about two chances in
three or better, and within twice of it with 95 %, as far as S draws know their own spread; of a mode that one draw in hundred
shows they may know nothing. It says nothing of how good the posterior is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from proxscore.config import MAX_DRAWS, ConfigError
from proxscore.posterior.running import Running

AUTO: Final = "auto"
GROWTH = 1.5  # of the number of draws between two looks: many looks would stop at errors that look small by chance


@dataclass(frozen=True)
class UntilSettled:
    """Draws until the prediction has settled.

    Args:
        tolerance: of the standard error of probabilities.
        sd_tolerance: of that of numbers, in units of the predictive standard deviation.
        least: draws that are taken at least, 2 or more.
        most: draws that are taken at most, settled or not.

    Raises:
        ConfigError: bounds that make no sense.
    """

    tolerance: float = 0.01
    sd_tolerance: float = 0.1
    least: int = 16
    most: int = 256

    def __post_init__(self) -> None:
        for name in ("tolerance", "sd_tolerance"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 2 <= self.least <= self.most <= MAX_DRAWS:
            raise ConfigError(
                f"draws from {self.least} to {self.most}: it must be 2 at least, and {MAX_DRAWS} at most, the least first"
            )

    def settled(self, sums: Running) -> bool:
        """Whether no row of a batch is further from its average than the tolerance; NaN never settles."""
        return bool((sums.error() <= (self.sd_tolerance if sums.relative else self.tolerance)).all())

    def rounds(self, held: int) -> Iterator[range]:
        """The draws that are added between two looks, of so many that there are."""
        start, stop = 0, min(self.least, held)
        while start < min(self.most, held):
            yield range(start, stop)
            start, stop = stop, min(int(stop * GROWTH), self.most, held)


#: How many draws: a number, or as many as it takes.
DrawCount = int | Literal["auto"] | UntilSettled


def until_settled(draws: DrawCount | None) -> UntilSettled | None:
    """The rule that is asked for; none: it is a number of draws.

    Raises:
        ConfigError: a text that is not ``auto``.
    """
    if isinstance(draws, str):
        if draws != AUTO:
            raise ConfigError(f"draws is {draws!r}; it must be a number, or {AUTO}")
        return UntilSettled()
    return draws if isinstance(draws, UntilSettled) else None
