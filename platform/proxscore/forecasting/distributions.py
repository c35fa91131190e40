"""What networks predict per step: families of distributions by their stacked parameters, and mixtures of them over draws.

Those for counts, amounts and other shapes are in :mod:`.likelihoods`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
from scipy import special
from torch import Tensor, distributions, nn
from torch.nn import functional

_SOFTPLUS_OF_1 = math.log(math.e - 1)  # whose softplus is 1


@contextmanager
def seeded(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Random numbers within follow from the generator's next one, and torch's own stream goes on afterwards as if none had
    been drawn: distributions of torch, and networks that sample by them, take no generator. Without one, nothing changes."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class StepDistribution(nn.Module, ABC):
    """A likelihood of H steps that are independent given the network's outputs (..., H, K), in units of the target.

    The K numbers of a step are the family's parameters, named by ``names``, in its domain: positive where it says so. The last
    two are a location and a scale in the unit of the target, as a network or its anchor gives them; each family says what it
    makes of them. All is computed in float32 or better.

    Attributes:
        names: of the parameters.
        least: lowest value that can occur; none: there is none.
        positive: that value itself cannot occur.
        counts: whole numbers alone occur.
        atom: 0 has a probability of its own beside a density: its log-density is the logarithm of that probability.
    """

    names: ClassVar[tuple[str, ...]]
    least: ClassVar[float | None] = None
    positive: ClassVar[bool] = False
    counts: ClassVar[bool] = False
    atom: ClassVar[bool] = False

    @property
    def continuous(self) -> bool:
        """Whether the distribution function has no jumps."""
        return not (self.counts or self.atom)

    @abstractmethod
    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """Natural logarithm of the density of each step: outputs (..., H, K) and values (..., H) to (..., H)."""

    @abstractmethod
    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """Distribution function of each step, float64, without gradient, on the CPU: (..., H, K) and (..., H) to (..., H)."""

    @abstractmethod
    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """Quantile of each step, its inverse: (..., H, K) and probabilities (..., H) in (0, 1), or one, to (..., H).

        Where the distribution function has jumps, the least value at which it reaches the probability.
        """

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """(..., H, K) to (..., H)."""

    @abstractmethod
    def variance(self, outputs: Tensor) -> Tensor:
        """(..., H, K) to (..., H)."""

    def standard(self, raw: Tensor) -> list[Tensor]:
        """K unconstrained numbers (..., K) to K parameters (...); zeros give location 0 and scale 1."""
        *others, loc, scale = raw.unbind(-1)
        return [*self.shapes(others), loc, functional.softplus(scale + _SOFTPLUS_OF_1)]

    def shapes(self, raw: list[Tensor]) -> list[Tensor]:
        """The parameters before location and scale, from unconstrained numbers."""
        return raw

    @property
    def size(self) -> int:
        """K."""
        return len(self.names)

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood in nats, summed over the observed steps.

        Args:
            outputs: (B, H, K).
            targets: (B, 2 or more, H), values, observed flags, and what has no effect here; the value of a missing step
                is any finite number.

        Returns:
            (B,); 0 for a row without an observed step.

        Raises:
            ValueError: shapes that do not fit.
        """
        self.check_shapes(outputs, targets)
        values, observed = targets[:, 0], targets[:, 1]
        return -torch.where(observed > 0, self.log_density(outputs, values), 0).sum(1)

    def check_shapes(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse outputs and targets that do not fit; see :meth:`nll`."""
        fits = targets.ndim == 3 and targets.shape[1] >= 2 and targets.shape[::2] == outputs.shape[:2]
        if outputs.ndim != 3 or not fits or outputs.shape[2] != self.size:
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} do not fit: "
                f"expected (B, H, {self.size}) and (B, 2, H)"
            )

    def sample(self, outputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent samples of each step, without gradient: (..., H, K) to (n, ..., H).

        Args:
            outputs: parameters.
            n: how many.
            generator: what the samples follow from; torch's own stream without.
        """
        with seeded(generator, outputs.device):
            uniform = torch.rand(n, *outputs.shape[:-1], dtype=torch.float64, device=outputs.device).cpu()
        own, tiny = outputs.detach().cpu(), torch.finfo(torch.float64).eps
        found = self.icdf(own.expand(n, *own.shape), uniform.clamp(tiny, 1 - tiny))
        return found.to(outputs.device, parts(outputs)[0].dtype)


class TorchDistribution(StepDistribution):
    """A family that torch has."""

    @abstractmethod
    def distribution(self, outputs: Tensor) -> distributions.Distribution:
        """The distribution of torch with batch shape (..., H)."""

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`StepDistribution`."""
        return self.distribution(outputs).log_prob(values)

    def sample(self, outputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """See :class:`StepDistribution`."""
        with seeded(generator, outputs.device):
            return self.distribution(outputs).sample((n,))

    def mean(self, outputs: Tensor) -> Tensor:
        """See :class:`StepDistribution`."""
        return self.distribution(outputs).mean

    def variance(self, outputs: Tensor) -> Tensor:
        """See :class:`StepDistribution`."""
        return self.distribution(outputs).variance


def parts(outputs: Tensor) -> tuple[Tensor, ...]:
    """The K parameters (...), in float32 or better."""
    return (outputs if outputs.dtype == torch.float64 else outputs.float()).unbind(-1)


def degrees_of_freedom(raw: list[Tensor]) -> list[Tensor]:
    """Above 2, from unconstrained numbers; 5.05 from 0."""
    return [2.0 + functional.softplus(part + 3.0) for part in raw]


class StudentT(TorchDistribution):
    """Student's t: degrees of freedom above 2 (below, the variance is not finite), location, scale."""

    names = ("df", "loc", "scale")

    def shapes(self, raw: list[Tensor]) -> list[Tensor]:
        """See :class:`StepDistribution`."""
        return degrees_of_freedom(raw)

    def distribution(self, outputs: Tensor) -> distributions.Distribution:
        """See :class:`StepDistribution`."""
        df, loc, scale = parts(outputs)
        return distributions.StudentT(df, loc, scale, validate_args=False)

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`StepDistribution`. Written out: torch's distribution checks its arguments in spite of ``validate_args``,
        which waits for a GPU at every step, and cannot be done without numbers."""
        df, loc, scale = parts(outputs)
        z = (values - loc) / scale
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(df * math.pi) - torch.log(scale)
        return constant - (df + 1) / 2 * torch.log1p(z.square() / df)

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`StepDistribution`; by scipy, as torch has none."""
        df, loc, scale = outputs.detach().double().unbind(-1)
        return torch.from_numpy(np.asarray(special.stdtr(df.numpy(), ((values.double() - loc) / scale).numpy())))

    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """See :class:`StepDistribution`."""
        df, loc, scale = outputs.detach().double().unbind(-1)
        return loc + scale * torch.from_numpy(np.asarray(special.stdtrit(df.numpy(), np.asarray(probability))))


class Normal(TorchDistribution):
    """Gaussian: mean and standard deviation."""

    names = ("loc", "scale")

    def distribution(self, outputs: Tensor) -> distributions.Distribution:
        """See :class:`StepDistribution`."""
        loc, scale = parts(outputs)
        return distributions.Normal(loc, scale, validate_args=False)

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`StepDistribution`."""
        loc, scale = outputs.detach().double().unbind(-1)
        return torch.special.ndtr((values.double() - loc) / scale)

    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """See :class:`StepDistribution`."""
        loc, scale = outputs.detach().double().unbind(-1)
        return loc + scale * torch.special.ndtri(torch.as_tensor(probability, dtype=torch.float64))


class Mixture:
    """The predictive of a batch, 1/S sum_s p(y | outputs_s), added up draw by draw; S x B x H is never held.

    With m_s and v_s the mean and variance of a step under draw s:

        mean = 1/S sum m_s    aleatoric = 1/S sum v_s    epistemic = 1/S sum (m_s - mean)^2

    and the variance of the mixture is aleatoric + epistemic (law of total variance).

    Args:
        likelihood: family of the outputs.
        values: (B, H), where the density is wanted; any finite number at missing steps.
    """

    def __init__(self, likelihood: StepDistribution, values: Tensor) -> None:
        self.likelihood, self.values, self.draws = likelihood, values, 0
        self._log_sum = torch.full_like(values, -math.inf, dtype=torch.float64)
        self._mean, self._squares, self._variances = (torch.zeros_like(self._log_sum) for _ in range(3))

    def add(self, outputs: Tensor) -> None:
        """The outputs (B, H, K) of one more draw."""
        self.draws += 1
        density = self.likelihood.log_density(outputs, self.values)
        self._log_sum = torch.logaddexp(self._log_sum, density.double())
        mean = self.likelihood.mean(outputs).double()
        change = mean - self._mean  # Welford: no difference of large squares
        self._mean = self._mean + change / self.draws
        self._squares = self._squares + change * (mean - self._mean)
        self._variances = self._variances + self.likelihood.variance(outputs).double()

    @property
    def log_density(self) -> Tensor:
        """(B, H), of the mixture, step by step."""
        return self._log_sum - math.log(self.draws)

    @property
    def mean(self) -> Tensor:
        """(B, H)."""
        return self._mean

    @property
    def aleatoric(self) -> Tensor:
        """(B, H) variance."""
        return self._variances / self.draws

    @property
    def epistemic(self) -> Tensor:
        """(B, H) variance; 0 for a single draw."""
        return self._squares / self.draws
