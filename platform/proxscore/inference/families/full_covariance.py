"""The Gaussian with a full covariance: for a last layer, or a small network.

    q(theta) = N(m, Sigma),    Sigma = C C^T,    eps = C^-1 (theta - m),    u = C^T s-hat

The candidate is R = C^T Lambda C, and the score-matching loss ||R - K||_F^2 / 2 + ||d - u||^2 / 2 with the curvature
statistic K = -sym E[u eps^T]. The penalty is a function of R's eigenvalues, so the step is the mean-field one in the
eigenbasis of K:

    K = V diag(k) V^T,   r = penalty(k),   m <- m + C V (step of V^T u given r),   C <- C R^(-1/2)

(with the adaptive metric M of :mod:`proxscore.inference.metric`, m <- m + (Lambda + M)^-1 s at the new precision)

The root is the symmetric one: eigenvectors are free in sign and order, and draws must not depend on rounding.

The statistic of a draw or pair differs from its mean by matrices of rank two with eigenvalues of order D times a mean
field's errors: mostly noise, and steps in random directions do not commute; of the size that independent numbers bear,
their product's condition number grows exponentially. So the trust region bounds the norm of log R by max_log_precision_step,
beyond 32 numbers times sqrt(32 / D). It does so by raising the penalty's weight to ||K - I|| / bound: the step is then nearly
linear in K, whose mean is right, and false curvature of either sign cancels over the steps. Shortening log R instead, which
is what is left to do where a penalty does not obey its weight, takes the logarithm of noise: from a start that is ten times too
wide for a target of condition number 1,000, that step went to standard deviations of 10^12 times the target's at D = 30,
where the raised weight arrives from a hundred times too wide. 32 was chosen by a head of 1,290 numbers and by 100 of a linear
regression, which need room to move.

Source: M. Kim, arXiv 2602.05873; for the exact matching without a penalty, GSM (2307.07849) and BaM (2402.14758).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from proxscore.inference.families.base import ClosedForm, Family, State, Total
from proxscore.inference.step import ProximalStep

LARGEST = 20_000  # numbers: a covariance of 1.6 GB


class FullCovariance(Family, ClosedForm):
    """Gaussian with full covariance. State: ``mean`` (D,), ``factor`` C (D, D) with Sigma = C C^T."""

    kind = "full_covariance"

    def check(self, name: str, shape: torch.Size, size: int) -> None:
        if size > LARGEST:
            raise ValueError(
                f"family full_covariance: {size:,} numbers ({name} and others) need a {size:,} x {size:,} covariance; "
                f"use at most {LARGEST:,}, for example the last layer only, or low_rank, or kronecker for each matrix"
            )

    def initial(self, mean: Tensor, precision: Tensor, shape: torch.Size, noise: Callable[[int], Tensor]) -> State:
        return {"mean": mean.clone(), "factor": precision.rsqrt().diag()}

    def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
        return state["mean"] + sign * (state["factor"] @ noise)

    def mean(self, state: State) -> Tensor:
        return state["mean"]

    def variance(self, state: State) -> Tensor:
        return state["factor"].square().sum(1)

    def covariance(self, state: State) -> Tensor:
        return state["factor"] @ state["factor"].mT

    def score(self, state: State, weights: Tensor, total: Total) -> Tensor:
        white = torch.linalg.solve(state["factor"], weights - state["mean"])
        return -torch.linalg.solve(state["factor"].mT, white)

    def log_prob(self, state: State, weights: Tensor, total: Total) -> Tensor:
        white = torch.linalg.solve(state["factor"], weights - state["mean"])
        return -0.5 * (white.square().sum() + len(white) * math.log(2 * math.pi)) - _log_det(state["factor"])

    def norm(self, state: State, vector: Tensor, total: Total) -> Tensor:
        return (state["factor"].mT @ vector).square().sum()

    def parameters(self, anchor: State) -> State:
        """Whitened mean step, and the Cholesky factor of R (logarithms on the diagonal)."""
        return {"step": torch.zeros_like(anchor["mean"]), "cholesky": torch.zeros_like(anchor["factor"])}

    def candidate(self, anchor: State, parameters: Mapping[str, Tensor]) -> State:
        # Sigma = C R^-1 C^T = (C L^-T) (C L^-T)^T with R = L L^T
        factor = torch.linalg.solve_triangular(lower(parameters["cholesky"]), anchor["factor"].mT, upper=False).mT
        return {"mean": anchor["mean"] + anchor["factor"] @ parameters["step"], "factor": factor}

    def kl(self, p: State, q: State, total: Total) -> tuple[Tensor, Tensor]:
        ratio = torch.linalg.solve(q["factor"], p["factor"])
        precision = 0.5 * (ratio.square().sum() - len(ratio)) - _log_det(ratio)
        return precision, 0.5 * torch.linalg.solve(q["factor"], p["mean"] - q["mean"]).square().sum()

    def curvature(self, state: State, noise: Tensor, scores: list[Tensor], prior_precision: Tensor) -> Tensor:
        """K of a draw or a pair, (D, D). A pair's is I + sym(-u eps^T) - eps eps^T, u of half the scores' difference:
        without noise at the optimum of a quadratic target. A single draw's prior part is exact instead of sampled."""
        factor = state["factor"]
        half = scores[0] if len(scores) == 1 else (scores[0] - scores[1]) / 2
        outer = torch.outer(factor.mT @ half, noise)
        result = -(outer + outer.mT) / 2
        if len(scores) == 1:
            return result + factor.mT @ (prior_precision[:, None] * factor)
        result -= torch.outer(noise, noise)
        result.diagonal().add_(1.0)
        return result

    def step(
        self,
        state: State,
        score: Tensor,
        curvature: Tensor,
        step: ProximalStep,
        metric: Tensor | None,
    ) -> Tensor:
        # In double precision: the factor is a product over all steps.
        factor = state["factor"].double()
        eigenvalues, vectors = torch.linalg.eigh(curvature.double())
        weight, limit = step.weights[0], math.inf
        if step.max_log_precision_step is not None:
            limit = trust(step.max_log_precision_step, len(eigenvalues))
            weight = max(weight, (eigenvalues - 1).norm().item() / limit)
        ratio = step.penalty.precision_ratio(eigenvalues, weight)
        logs = ratio.log()
        ratio = (logs * min(1.0, limit / max(logs.norm().item(), 1e-300))).exp()
        rotated = factor @ vectors
        white = rotated.mT @ score.double()
        if metric is None:
            white = step.penalty.mean_step(white, ratio, step.weights[1])
            # The ball around the box of the mean-field family: no axis is special here.
            radius = step.max_mean_step * math.sqrt(len(white))
            move = rotated @ (white * min(1.0, radius / max(white.norm().item(), 1e-300)))
        else:
            move = _adaptive_step(rotated, ratio, metric.double(), white).clamp(-step.max_mean_step, step.max_mean_step)
        state["mean"] += move.to(state["mean"])
        state["factor"].copy_(rotated * ratio.rsqrt() @ vectors.mT)
        return ratio


def trust(max_log_ratio: float | None, size: int) -> float:
    """Largest norm of the change of the precision matrix's logarithm in a step, for so many numbers."""
    return math.inf if max_log_ratio is None else max_log_ratio * min(1.0, math.sqrt(32 / size))


def lower(raw: Tensor) -> Tensor:
    """A Cholesky factor from free numbers: the lower triangle, with exponentials on the diagonal."""
    return raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()


def _adaptive_step(rotated: Tensor, ratio: Tensor, metric: Tensor, white: Tensor) -> Tensor:
    """(Lambda + diag(M))^-1 s with Lambda = B^-T diag(r) B^-1, B = C V: B (diag(r) + B^T diag(M) B)^-1 B^T s."""
    if not metric.isfinite().all():  # the mean stays where it is
        return torch.zeros_like(metric)
    system = rotated.mT @ (metric[:, None] * rotated)
    system.diagonal().add_(ratio)
    return rotated @ torch.cholesky_solve(white[:, None], torch.linalg.cholesky(system))[:, 0]


def _log_det(factor: Tensor) -> Tensor:
    return torch.linalg.slogdet(factor).logabsdet
