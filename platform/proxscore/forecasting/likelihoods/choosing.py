"""Which likelihood suits a data set, by the kind of its training targets.

=================================================================  =================================
kind                                                               likelihood
=================================================================  =================================
values below 0, or few series come near it                         ``student_t``
whole numbers from 0 on, half of them below 30 (counts)            ``negative_binomial``
such, with far more zeros than a negative binomial has             ``zero_inflated_negative_binomial``
such, that vary less than any negative binomial (ratings, stock)   as other numbers
other numbers from 0 on, of which many are exactly 0               ``zero_inflated_lognormal``
other numbers from 0 on, some near 0                               ``truncated_student_t``
=================================================================  =================================

A series comes near 0 where the 5% quantile of its last quarter is less than a typical error of the seasonal naive forecast there,
sqrt(pi / 2) mean |y_t - y_(t-m)|: for independent Gaussian targets, where their mean is less than 3.1 standard deviations.

Counts vary less than any negative binomial, whose variance is its mean at least, where half the mean square of differences, to
the step or the season before, is less than half the mean: what is forecast may be far narrower than Poisson's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from proxscore.calibration.seasonal_error import seasonal_error

SMALL = 30  # counts below are small
INFLATED = 0.1  # share of zeros beyond those of a negative binomial; one that is true differs by .02 in samples of 400
REGULAR = 0.5  # of Poisson's variance, below which counts vary less than a negative binomial can
ZEROS = 0.3  # share of zeros of other numbers from which they are many
NEAR = 0.05  # share of the series that come near 0, from which they are some
_LOW = 0.05  # quantile of a series that says whether it does
_LAST = 4  # one part of so many of each series is looked at, as series grow, and
_SEASONS, _STEPS = 3, 24  # no fewer seasons and steps, if it has them


@dataclass(frozen=True)
class Kind:
    """A likelihood, and the kind of data that it was chosen for, in words."""

    likelihood: str
    told: str


def chosen(targets: Sequence[NDArray[np.floating]], season: int) -> Kind:
    """By the training parts of all series; NaN is missing.

    Args:
        targets: of each series.
        season: steps of the shortest season that the series repeat; 1 without.
    """
    seen = [values for values in (each[~np.isnan(each)].astype(np.float64) for each in targets) if len(values)]
    if not seen or min(float(values.min()) for values in seen) < 0:
        return Kind("student_t", "some are below 0")
    every = np.concatenate(seen)
    zeros = float((every == 0).mean())
    if not every.any():
        return Kind("student_t", "all are 0")
    counts = bool((every == np.floor(every)).all()) and float(np.median(every)) < SMALL
    regular = counts and _dispersion(targets, season) < REGULAR
    if counts and not regular:
        usual = float(np.average([_usual_zeros(values) for values in seen], weights=[len(values) for values in seen]))
        if zeros - usual > INFLATED:
            told = f"counts, {zeros:.0%} of them 0, {usual:.0%} by a negative binomial"
            return Kind("zero_inflated_negative_binomial", told)
        return Kind("negative_binomial", f"counts, with a median of {np.median(every):g}")
    if zeros > ZEROS:
        return Kind("zero_inflated_lognormal", f"none is below 0, and {zeros:.0%} are 0")
    near = float(np.mean([_comes_near(each, season) for each in targets]))
    told = f"{'counts that vary less than a negative binomial; ' if regular else ''}none is below 0, and {near:.0%} of the "
    return Kind("truncated_student_t" if near > NEAR else "student_t", f"{told}series come near it")


def _usual_zeros(values: NDArray[np.float64]) -> float:
    """Probability of a 0 by the negative binomial, or Poisson distribution, with this mean and variance."""
    mean, variance = float(values.mean()), float(values.var())
    if variance <= mean * (1 + 1e-9):
        return math.exp(-mean)
    size = mean**2 / (variance - mean)
    return math.exp(-size * math.log1p(mean / size))


def _dispersion(targets: Sequence[NDArray[np.floating]], season: int) -> float:
    """Variance of what is new in each step, by the better of two differences, divided by the mean; of all series together."""
    mean = float(np.mean(np.concatenate([each[~np.isnan(each)] for each in targets])))
    found = []
    for lag in {1, season}:
        squares = np.concatenate([np.square(each[lag:] - each[:-lag]) for each in targets])
        if not np.isnan(squares).all():
            found.append(float(np.nanmean(squares)) / 2)
    return min(found, default=math.inf) / mean


def _comes_near(values: NDArray[np.floating], season: int) -> bool:
    values = values[-max(len(values) // _LAST, _SEASONS * season, _STEPS) :]
    error = float(seasonal_error(torch.from_numpy(values.astype(np.float64)), season))
    if not math.isfinite(error) or np.isnan(values).all():
        return False
    return float(np.nanquantile(values, _LOW)) < math.sqrt(math.pi / 2) * error
