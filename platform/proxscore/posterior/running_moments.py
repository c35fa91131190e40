"""Central moments of a sequence of tensors, number by number, without the sequence: mean, and sums of powers of deviations.

    M_p = sum_s (x_s - mean)^p,    p = 2, 3, 4

are updated value by value (Welford for p = 2; P. Pébay, Formulas for robust, one-pass parallel computation of covariances and
arbitrary-order statistical moments, Sandia report 2008-6212, for the others). The squares of deviations stay exact where
the mean is large beside them, as sums of squares would not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RunningMoments:
    """Moments of the values added so far.

    Args:
        order: 2 or 4: the highest power that is summed.
    """

    def __init__(self, order: int = 2) -> None:
        self.count, self._order = 0, order
        self.mean = torch.empty(0)
        self._sums: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        """The next value, shaped as the others."""
        self.count += 1
        if self.count == 1:
            self.mean, self._sums = value.clone(), [torch.zeros_like(value) for _ in range(2, self._order + 1)]
            return
        n, difference = self.count, value - self.mean
        share = difference / n
        term = difference * share * (n - 1)
        if self._order == 4:
            second, third, fourth = self._sums
            fourth += term * share.square() * (n * n - 3 * n + 3) + 6 * share.square() * second - 4 * share * third
            third += term * share * (n - 2) - 3 * share * second
        self._sums[0] += term
        self.mean += share

    def extend(self, values: Tensor) -> None:
        """Several values, stacked along the first dimension; of order 2 merged in one go (Chan, Golub and LeVeque 1979)."""
        if self._order == 4:
            for value in values:
                self.add(value)
            return
        count, mean = len(values), values.mean(0)
        sums = (values - mean).square().sum(0)
        if not self.count:
            self.count, self.mean, self._sums = count, mean, [sums]
            return
        difference, total = mean - self.mean, self.count + count
        self._sums[0] += sums + difference.square() * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Over the values, divided by their number."""
        return self._sums[0] / self.count

    @property
    def variance_of_squares(self) -> Tensor:
        """Of the squared deviations from the mean, M_4 / n - (M_2 / n)^2; of order 4 alone."""
        return (self._sums[2] / self.count - self.variance.square()).clamp_min(0)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, sqrt(M_2 / (n - 1) / n): how far it is from that of infinitely many independent values; two at least."""
        return (self._sums[0] / (self.count - 1)).sqrt() / math.sqrt(self.count)
