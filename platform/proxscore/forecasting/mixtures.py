"""The exact distribution function and quantiles of a mixture over draws, from the draws' stacked parameters.

    F(y) = 1/S sum_s F(y | outputs_s),    q(p) = the y with F(y) = p

A quantile of the mixture lies between the least and the largest of the draws' own. Within that bracket Newton's method finds
it, with bisection where a step would leave the bracket. Of counts the quantile is the least whole number at which F reaches p, by
bisection alone; where 0 has a probability of its own that reaches p, it is the quantile. All is float64, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from proxscore.forecasting.distributions import StepDistribution

TOLERANCE = 1e-9  # of the bracket, relative to the largest of all
CLOSE = 1e-7  # of |F(y) - p| relative to p or 1 - p: it is found
NEWTON = 20  # iterations, after which bisection is alone
ITERATIONS = 100  # in so many fewer it reaches the tolerance


@dataclass(frozen=True)
class StepMixture:
    """The mixture over draws of the distributions of each step of some windows.

    Attributes:
        likelihood: family of the parameters.
        outputs: (S, B, H, K), of every draw.
    """

    likelihood: StepDistribution
    outputs: Tensor

    def cdf(self, values: Tensor) -> Tensor:
        """(B, H) to (B, H): probability of at most these values."""
        total = torch.zeros(values.shape, dtype=torch.float64)
        for draw in self.outputs:
            total += self.likelihood.cdf(draw.cpu(), values.cpu())
        return total / len(self.outputs)

    def quantiles(self, probabilities: Sequence[float]) -> Tensor:
        """(Q, B, H), in the order of the probabilities, which lie between 0 and 1; none is below that of a lower probability."""
        with ThreadPoolExecutor(max(torch.get_num_threads(), 1)) as threads:  # scipy's functions have one each
            found = torch.stack(list(threads.map(self._quantile, probabilities)))
        order = torch.tensor(probabilities).argsort()
        return found[order].cummax(0).values[order.argsort()]  # by rounding alone they might cross

    def _quantile(self, probability: float) -> Tensor:
        outputs = self.outputs.cpu().double().flatten(1, 2)  # (S, N, K)
        own = torch.stack([self.likelihood.icdf(draw, probability) for draw in outputs])
        lower, upper = own.amin(0), own.amax(0)
        if self.likelihood.counts:
            return self._least_count(probability, outputs, lower, upper).reshape(self.outputs.shape[1:3])
        found = own.mean(0)
        if self.likelihood.atom:
            zero = self._mean_cdf(outputs, torch.zeros_like(found)) >= probability
            found, lower, upper = (torch.where(zero, 0, part) for part in (found, lower, upper))
        scale = (upper - lower).amax().clamp_min(1e-300)
        rows = torch.arange(found.numel())
        for iteration in range(ITERATIONS):
            rows = rows[
                (upper - lower)[rows] > TOLERANCE * torch.minimum(scale, found[rows].abs() + (upper - lower)[rows])
            ]
            if not len(rows):
                break
            excess = self._mean_cdf(outputs[:, rows], found[rows]) - probability
            left = excess.abs() > CLOSE * min(probability, 1 - probability)
            rows, excess = rows[left], excess[left]
            parts, at = outputs[:, rows], found[rows]
            upper[rows] = torch.where(excess > 0, at, upper[rows])
            lower[rows] = torch.where(excess > 0, lower[rows], at)
            density = torch.stack([self.likelihood.log_density(part, at).exp() for part in parts]).mean(0)
            step = at - excess / density
            inside = (step > lower[rows]) & (step < upper[rows]) & (iteration < NEWTON)
            found[rows] = torch.where(inside, step, (lower[rows] + upper[rows]) / 2)
        return found.reshape(self.outputs.shape[1:3])

    def _mean_cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        return torch.stack([self.likelihood.cdf(part, values) for part in outputs]).mean(0)

    def _least_count(self, probability: float, outputs: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """It is above lower - 1, where each draw's F is below p, and at most upper."""
        below, found = lower - 1, upper
        while len(rows := (found - below > 1).nonzero()[:, 0]):
            middle = ((below + found) / 2).floor()[rows]
            reached = self._mean_cdf(outputs[:, rows], middle) >= probability
            found[rows] = torch.where(reached, middle, found[rows])
            below[rows] = torch.where(reached, below[rows], middle)
        return found
