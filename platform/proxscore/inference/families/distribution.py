"""Any distribution with ``log_prob`` and ``sample``, for blocks of few numbers: torch's distributions, or a flow.

    Distribution(lambda p: torch.distributions.StudentT(4.0, p["loc"], p["log_scale"].exp()),
                 {"loc": torch.zeros(3), "log_scale": torch.zeros(3)})

The score comes from autograd, and draws carry no graph. No closed-form step: the gradient solver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from proxscore.inference.families.base import Family, State, Total


class Distribution(Family):
    """A distribution built from free parameters.

    Args:
        build: from a dictionary of tensors to an object with ``log_prob(theta)`` (summed over the D numbers or not) and
            ``sample()`` of shape (D,); differentiable in the tensors.
        initial_parameters: their first values.
        scale: typical standard deviation of a number, in which scores are matched.
    """

    kind = "distribution"
    antithetic = False
    extra = 2

    def __init__(
        self, build: Callable[[Mapping[str, Tensor]], Any], initial_parameters: Mapping[str, Tensor], scale: float = 1.0
    ) -> None:
        if not scale > 0:
            raise ValueError(f"family distribution: scale is {scale}; it must be positive")
        self.build, self.initial_parameters, self.scale = build, dict(initial_parameters), scale

    def check(self, name: str, shape: torch.Size, size: int) -> None:
        found = self.build(self.initial_parameters).sample().shape
        if found != (size,):
            raise ValueError(f"family distribution: samples have shape {tuple(found)}; {name} and others are ({size},)")
        if not self.mean(self.initial_parameters).isfinite().all():
            raise ValueError("family distribution: it has no finite mean, which the weights take between steps")

    def initial(self, mean: Tensor, precision: Tensor, shape: torch.Size, noise: Callable[[int], Tensor]) -> State:
        return {name: value.detach().to(mean).clone() for name, value in self.initial_parameters.items()}

    def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
        """An independent draw for each sign: the distribution draws from torch's generator, seeded here."""
        devices = [noise.device] if noise.is_cuda else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(int(torch.special.ndtr(extra[0 if sign > 0 else 1].double()).item() * 2**62))
            return self.build(state).sample().detach()

    def mean(self, state: Mapping[str, Tensor]) -> Tensor:
        """The distribution's own mean where it has one, else that of 1,000 seeded samples."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            built = self.build(state)
            try:
                return built.mean.expand(built.sample().shape).clone()
            except (AttributeError, NotImplementedError):
                return self._samples(built).mean(0)

    def variance(self, state: Mapping[str, Tensor]) -> Tensor:
        """The distribution's own where it has one, else that of 1,000 seeded samples."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            built = self.build(state)
            try:
                return built.variance.expand(built.sample().shape).clone()
            except (AttributeError, NotImplementedError):
                return self._samples(built).var(0)

    def covariance(self, state: Mapping[str, Tensor]) -> Tensor:
        """The distribution's own where it has one; of independent numbers their variances; else that of 1,000 samples."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            built = self.build(state)
            if hasattr(built, "covariance_matrix"):
                return built.covariance_matrix.clone()
            return self.variance(state).diag() if built.log_prob(built.sample()).ndim else self._samples(built).mT.cov()

    @staticmethod
    def _samples(built: Any) -> Tensor:
        return torch.stack([built.sample() for _ in range(1000)])

    def score(self, state: State, weights: Tensor, total: Total) -> Tensor:
        with torch.enable_grad():
            point = weights.detach().requires_grad_()
            return torch.autograd.grad(self.log_prob(state, point, total), point, create_graph=True)[0]

    def log_prob(self, state: State, weights: Tensor, total: Total) -> Tensor:
        return self.build(state).log_prob(weights).sum()

    def norm(self, state: State, vector: Tensor, total: Total) -> Tensor:
        return vector.square().sum() * self.scale**2

    def parameters(self, anchor: State) -> State:
        return {name: value.clone() for name, value in anchor.items()}

    def candidate(self, anchor: State, parameters: Mapping[str, Tensor]) -> State:
        return dict(parameters)
