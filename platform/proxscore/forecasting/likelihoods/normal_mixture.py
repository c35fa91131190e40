"""Three Gaussians per step, for targets with several peaks or a skew.

Weights w_j, means d_j and standard deviations t_j are standardised: with D = sum w_j d_j and V^2 = sum w_j (t_j^2 + (d_j - D)^2)

    y = loc + scale x,    x ~ sum_j w_j N((d_j - D) / V, t_j^2 / V^2),

so that mean and standard deviation are location and scale, whatever the shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from proxscore.forecasting.distributions import StepDistribution, parts, seeded

COMPONENTS = 3
_APART = 0.5  # of the means at first: components that are equal would stay so
_LEAST = 0.01  # of a standard deviation, before it is standardised
_STEPS = 200  # of bisection and Newton's method, at most


class NormalMixture(StepDistribution):
    """Logits of the weights, means, and standard deviations of the components, then mean and standard deviation of all."""

    names = (
        *(f"{name}_{number}" for name in ("logit", "shift", "width") for number in range(1, COMPONENTS + 1)),
        "loc",
        "scale",
    )

    def shapes(self, raw: list[Tensor]) -> list[Tensor]:
        """See :class:`.StepDistribution`."""
        logits, shifts, widths = (raw[i * COMPONENTS : (i + 1) * COMPONENTS] for i in range(3))
        middle = (COMPONENTS - 1) / 2
        return [
            *logits,
            *(shift + _APART * (number - middle) for number, shift in enumerate(shifts)),
            *(_LEAST + functional.softplus(width + math.log(math.e - 1)) for width in widths),
        ]

    def log_density(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        logs, means, widths = _components(parts(outputs))
        z = (values[..., None] - means) / widths
        return torch.logsumexp(logs - 0.5 * z.square() - widths.log() - 0.5 * math.log(2 * math.pi), -1)

    def cdf(self, outputs: Tensor, values: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        logs, means, widths = _components(outputs.detach().double().unbind(-1))
        return (logs.exp() * torch.special.ndtr((values.double()[..., None] - means) / widths)).sum(-1).clamp_max(1)

    def icdf(self, outputs: Tensor, probability: float | Tensor) -> Tensor:
        """See :class:`.StepDistribution`. Between the least and the largest of the components', by Newton's method or halves."""
        outputs = outputs.detach().double()
        wanted = torch.as_tensor(probability, dtype=torch.float64)
        _, means, widths = _components(outputs.unbind(-1))
        own = means + widths * torch.special.ndtri(wanted)[..., None]
        lower, upper = own.amin(-1), own.amax(-1)
        found = (lower + upper) / 2
        for _ in range(_STEPS):
            excess = self.cdf(outputs, found) - wanted
            lower, upper = torch.where(excess < 0, found, lower), torch.where(excess > 0, found, upper)
            newton = found - excess / self.log_density(outputs, found).exp()
            inside = (newton >= lower) & (newton <= upper)
            moved = torch.where(inside, newton, (lower + upper) / 2)
            if bool(((moved - found).abs() <= 1e-13 * (found.abs() + upper - lower)).all()):
                break
            found = moved
        return found

    def sample(self, outputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """See :class:`.StepDistribution`."""
        logs, means, widths = _components(parts(outputs.detach()))
        with seeded(generator, outputs.device):
            chosen = torch.multinomial(logs.exp().flatten(0, -2), n, replacement=True)
            noise = torch.randn(n, *outputs.shape[:-1], dtype=means.dtype, device=outputs.device)
        places = chosen.T.reshape(n, *outputs.shape[:-1])[..., None]
        mean, width = (part.expand(n, *part.shape).gather(-1, places)[..., 0] for part in (means, widths))
        return mean + width * noise

    def mean(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        return parts(outputs)[-2]

    def variance(self, outputs: Tensor) -> Tensor:
        """See :class:`.StepDistribution`."""
        return parts(outputs)[-1].square()


def _components(own: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(..., J) logarithms of weights, means and standard deviations, in the unit of the target."""
    logits, shifts, widths = (torch.stack(own[i * COMPONENTS : (i + 1) * COMPONENTS], -1) for i in range(3))
    logs = torch.log_softmax(logits, -1)
    weights, loc, scale = logs.exp(), own[-2][..., None], own[-1][..., None]
    shifts = shifts - (weights * shifts).sum(-1, keepdim=True)
    whole = (weights * (widths.square() + shifts.square())).sum(-1, keepdim=True).sqrt()
    return logs, loc + scale * shifts / whole, scale * widths / whole
