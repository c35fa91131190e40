"""Bayesian linear and logistic regression with known posteriors, and their mini-batch scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

N = 2000
Moments = tuple[Tensor, Tensor]


class Regression:
    """A regression y ~ x with prior N(0, I) on its D coefficients, in float64.

    Args:
        kind: ``linear`` (noise 1, orthogonal columns) or ``logistic`` (normal columns).
        dimension: D, at most N.
        seed: of the data.
    """

    def __init__(self, kind: str, dimension: int, seed: int) -> None:
        self.kind, self.dimension, self.name = kind, dimension, f"{kind}, D = {dimension:,}"
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(N, dimension, generator=generator, dtype=torch.float64)
        if kind == "linear":
            self.x = torch.linalg.qr(self.x).Q * math.sqrt(N)
        self.x *= torch.logspace(-0.25, 0.25, dimension, dtype=torch.float64)
        truth = 2 * torch.randn(dimension, generator=generator, dtype=torch.float64) / math.sqrt(dimension)
        signal = self.x @ truth
        noise = torch.rand(N, generator=generator, dtype=torch.float64)
        self.y = (
            signal + 2**0.5 * torch.erfinv(2 * noise - 1) if kind == "linear" else (noise < signal.sigmoid()).double()
        )
        self.log_evidence, self.efficiency = 0.0, 1.0
        self.mean, self.covariance = self._linear() if kind == "linear" else self._logistic(generator)
        self.variance = self.covariance.diagonal()
        signs = 1 - 2 * (torch.arange(dimension, dtype=torch.float64) % 2)
        self.start = self.mean + signs * self.variance.sqrt()
        self.start_precision = 3 / self.variance.log().mean().exp().item()

    def residuals(self, thetas: Tensor) -> Tensor:
        """d log p(y_i | x_i, theta) / d(x_i theta), (S, N) for draws (S, D)."""
        signal = thetas @ self.x.mT
        return self.y - (signal if self.kind == "linear" else signal.sigmoid())

    def score(self, thetas: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        """Mini-batch scores (S, D), with rows of its own for each draw."""
        rows = sample(len(thetas), batch, generator)
        x, y = self.x[rows], self.y[rows]
        signal = torch.einsum("sbd,sd->sb", x, thetas)
        residuals = y - (signal if self.kind == "linear" else signal.sigmoid())
        return N / batch * torch.einsum("sb,sbd->sd", residuals, x) - thetas

    def log_joint(self, thetas: Tensor) -> Tensor:
        """log p(y, theta) up to a constant of the data, (S,)."""
        signal = thetas @ self.x.mT
        if self.kind == "linear":
            likelihood = -0.5 * (self.y - signal).square().sum(1)
        else:
            likelihood = (self.y * signal - nn.functional.softplus(signal)).sum(1)
        return likelihood - 0.5 * thetas.square().sum(1)

    def kl(self, mean: Tensor, covariance: Tensor, draws: int = 500) -> float:
        """KL(N(mean, covariance) || posterior) in nats; by Monte Carlo for the logistic one."""
        factor = torch.linalg.cholesky(covariance)
        if self.kind == "logistic":
            noise = torch.randn(draws, self.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1) - factor.diagonal().log().sum()
            return (log_q - self.log_joint(mean + noise @ factor.mT)).mean().item() + self.log_evidence
        exact = torch.linalg.cholesky(self.covariance)
        ratio = torch.linalg.solve_triangular(exact, factor, upper=False)
        offset = torch.linalg.solve_triangular(exact, (mean - self.mean)[:, None], upper=False)
        power = 0.5 * (ratio.square().sum() + offset.square().sum() - len(mean))
        return (power - ratio.diagonal().log().sum()).item()

    def _linear(self) -> Moments:
        precision = self.x.mT @ self.x + torch.eye(self.dimension, dtype=torch.float64)
        return torch.linalg.solve(precision, self.x.mT @ self.y), torch.linalg.inv(precision)

    def _logistic(self, generator: torch.Generator, draws: int = 20_000) -> Moments:
        """Newton's method for the mode, then importance sampling from the Laplace approximation, widened by 5 %."""
        mean = torch.zeros(self.dimension, dtype=torch.float64)
        for _ in range(20):
            p = (self.x @ mean).sigmoid()
            hessian = (self.x.mT * (p * (1 - p))) @ self.x + torch.eye(self.dimension, dtype=torch.float64)
            mean = mean + torch.linalg.solve(hessian, self.x.mT @ (self.y - p) - mean)
        factor = 1.05 * torch.linalg.cholesky(torch.linalg.inv(hessian))
        noise = torch.randn(draws, self.dimension, generator=generator, dtype=torch.float64)
        thetas = mean + noise @ factor.mT
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1) - factor.diagonal().log().sum()
        ratio = torch.cat([self.log_joint(part) for part in thetas.split(2000)]) - log_q
        self.log_evidence = (ratio.logsumexp(0) - math.log(draws)).item()
        weights = ratio.softmax(0)
        self.efficiency = (1 / weights.square().sum() / draws).item()
        mean = weights @ thetas
        return mean, (weights * (thetas - mean).mT) @ (thetas - mean)


def sample(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """``count`` mini-batches of rows without replacement, (count, batch)."""
    return torch.stack([torch.randperm(N, generator=generator)[:batch] for _ in range(count)])
