"""Targets that are never below 0: a Gaussian or a Student t, given that it is not.

Location and scale are the parent's. With a = loc / scale, z = (y - loc) / scale, and F the parent's standard distribution
function, whose logarithm is known far in the tail,

    log p(y) = log f(z) - log scale - log F(a),    1 - P(y) = F(-z) / F(a),    y >= 0.

Far above 0 they are their parents. A 0 that occurs again and again has no probability of its own here.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from scipy import special
from torch import Tensor

from proxscore.forecasting.distributions import StepDistribution, degrees_of_freedom, parts, seeded
from proxscore.forecasting.likelihoods.student_tail import log_student_cdf

_FAR = 50.0  # scales below 0, from which moments of the truncated Gaussian are those of its series
_LEAST_DF = 1e-4  # above 2, in the variance
_NEWTON = 60  # steps at most
_DEEP, _NEXT = -60.0, 0.05  # logarithm of a tail, and z, beyond and below which scipy's inverse is not exact


class Truncated(StepDistribution):
    """A parent with location and scale, truncated to y >= 0."""

    least = 0.0

    @abstractmethod
    def log_parent(self, others: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """log f(z), of the standard parent; float64."""

    @abstractmethod
    def log_below(self, others: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """log F(z), of the standard parent; float64."""

    @abstractmethod
    def point(self, others: tuple[Tensor, ...], log_tail: Tensor) -> Tensor:
        """z with log F(-z) = log_tail."""

    @abstractmethod
    def standard_moments(self, others: tuple[Tensor, ...], a: Tensor) -> tuple[Tensor, Tensor]:
        """Mean less -a, and variance, of the standard parent above -a."""

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`; -inf below 0."""
        *others, loc, scale = (part.double() for part in parts(outputs))
        own = tuple(others)
        inside = values.double().clamp_min(0)
        density = self.log_parent(own, (inside - loc) / scale) - scale.log() - self.log_below(own, loc / scale)
        return torch.where(values < 0, -math.inf, density).to(
            torch.promote_types(parts(outputs)[0].dtype, values.dtype)
        )

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        *others, loc, scale = outputs.detach().double().unbind(-1)
        own, z = tuple(others), (values.double().clamp_min(0) - loc) / scale
        return -torch.expm1((self.log_below(own, -z) - self.log_below(own, loc / scale)).clamp_max(0))

    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        *others, loc, scale = outputs.detach().double().unbind(-1)
        own = tuple(others)
        above = torch.log1p(-torch.as_tensor(probability, dtype=torch.float64))
        return (loc + scale * self.point(own, above + self.log_below(own, loc / scale))).clamp_min(0)

    def sample(self, outputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """See :class:`.StepDistribution`. What is below 0 of the parent is computed once for all samples."""
        with seeded(generator, outputs.device):
            uniform = torch.rand(n, *outputs.shape[:-1], dtype=torch.float64, device=outputs.device).cpu()
        tiny = torch.finfo(torch.float64).eps
        found = self.icdf(outputs.detach().cpu(), uniform.clamp(tiny, 1 - tiny))
        return found.to(outputs.device, parts(outputs)[0].dtype)

    def mean(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        *others, loc, scale = (part.double() for part in parts(outputs))
        return (scale * self.standard_moments(tuple(others), loc / scale)[0]).to(parts(outputs)[0].dtype)

    def variance(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        *others, loc, scale = (part.double() for part in parts(outputs))
        return (scale.square() * self.standard_moments(tuple(others), loc / scale)[1]).to(parts(outputs)[0].dtype)


class TruncatedNormal(Truncated):
    """A Gaussian above 0: mean and standard deviation of the whole Gaussian."""

    names = ("loc", "scale")

    def log_parent(self, others: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """See :class:`Truncated`."""
        return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)

    def log_below(self, others: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """See :class:`Truncated`."""
        return torch.special.log_ndtr(z)

    def point(self, others: tuple[Tensor, ...], log_tail: Tensor) -> Tensor:
        """See :class:`Truncated`."""
        return -torch.from_numpy(np.asarray(special.ndtri_exp(log_tail.numpy())))

    def standard_moments(self, others: tuple[Tensor, ...], a: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Truncated`. Far below 0 by their series in 1/a: the closed forms are differences of large numbers there."""
        near = a.clamp_min(-_FAR)
        hazard = torch.exp(self.log_parent((), near) - self.log_below((), near))
        far = a.abs().clamp_min(_FAR)
        mean = torch.where(a > -_FAR, near + hazard, (1 - 2 / far**2 + 10 / far**4) / far)
        variance = torch.where(a > -_FAR, 1 - hazard * (near + hazard), (1 - 6 / far**2 + 50 / far**4) / far**2)
        return mean, variance.clamp_min(0)


class TruncatedStudentT(Truncated):
    """A Student t above 0: degrees of freedom above 2, location and scale of the whole distribution."""

    names = ("df", "loc", "scale")

    def shapes(self, raw: list[Tensor]) -> list[Tensor]:
        """See :class:`.StepDistribution`."""
        return degrees_of_freedom(raw)

    def log_parent(self, others: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """See :class:`Truncated`."""
        (df,) = others
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(df * math.pi)
        return constant - (df + 1) / 2 * torch.log1p((z / df.sqrt()).square())

    def log_below(self, others: tuple[Tensor, ...], z: Tensor) -> Tensor:
        """See :class:`Truncated`."""
        return log_student_cdf(others[0], z)

    def point(self, others: tuple[Tensor, ...], log_tail: Tensor) -> Tensor:
        """See :class:`Truncated`. By scipy, and by Newton's method where that is not exact: next to 0, and far in the tail."""
        df, log_tail = (each.contiguous() for each in torch.broadcast_tensors(others[0], log_tail))
        found = -torch.from_numpy(np.asarray(special.stdtrit(df.numpy(), log_tail.exp().numpy())))
        far = (log_tail < _DEEP) | ~found.isfinite()
        rows = far | (found.abs() < _NEXT)
        if bool(rows.any()):
            power = df.sqrt() * torch.exp((-log_tail / df).clamp_max(300))  # where the tail were a power of z
            start = torch.where(far, power, found)
            found[rows] = self._newton(df[rows], log_tail[rows], start[rows])
        return found

    def _newton(self, df: Tensor, log_tail: Tensor, found: Tensor) -> Tensor:
        """(N,) z with log F(-z) = log_tail, from a value near it."""
        for _ in range(_NEWTON):
            tail = log_student_cdf(df, -found)
            step = (tail - log_tail) * torch.exp(tail - self.log_parent((df,), found))
            found = found + torch.maximum(step, -0.9 * found.abs() - 1e-3).minimum(9 * found.abs() + 1e-3)
            if bool((step.abs() <= 1e-14 * (1 + found.abs())).all()):
                break
        return found

    def standard_moments(self, others: tuple[Tensor, ...], a: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Truncated`. By parts: (nu - 2) E[z^2 | z > -a] = nu - (nu - 1) a E[z | z > -a]."""
        df = others[0].clamp_min(2 + _LEAST_DF)
        ratio = torch.exp(self.log_parent((df,), a) - self.log_below((df,), a))
        mean = ratio * (df + a.square()) / (df - 1)
        variance = (df - (df - 1) * a * mean) / (df - 2) - mean.square()
        return (a + mean).clamp_min(0), variance.clamp_min(0)
