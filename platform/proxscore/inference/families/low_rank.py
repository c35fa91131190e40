"""The Gaussian with a low-rank plus diagonal covariance: Sigma = diag(v) + U U^T, U of r << D columns.

Everything goes through r x r matrices (Woodbury), so the cost is O(D r + r^3), and over shards the sums of r numbers
(score, log-density) or r x r numbers (divergence):

    Sigma^-1 = W - W U M^-1 U^T W,     log det Sigma = sum log v + log det M,     W = diag(1/v),  M = I + U^T W U

No closed-form step: the gradient solver. Source: M. Kim, arXiv 2602.05873; low rank in BaM (2402.14758).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from proxscore.config.bounds import Bounds
from proxscore.inference.families.base import Family, State, Total


class LowRank(Family):
    """Low-rank plus diagonal Gaussian. State: ``mean`` (D,), ``variance`` v (D,), ``factor`` U (D, r).

    Args:
        rank: r, at least 1 and at most D.
        spread: initial size of each column of U, in standard deviations: not zero, where its gradient would vanish.
    """

    kind = "low_rank"
    shardable = True

    def __init__(
        self, rank: Annotated[int, Bounds(ge=1, le=10_000)] = 8, spread: Annotated[float, Bounds(gt=0)] = 0.1
    ) -> None:
        if rank < 1:
            raise ValueError(f"family low_rank: rank is {rank}; it must be at least 1")
        if not spread > 0:
            raise ValueError(f"family low_rank: spread is {spread}; it must be positive")
        self.rank, self.spread = rank, spread
        self.extra = rank

    def settings(self) -> dict[str, Any]:
        return {"rank": self.rank, "spread": self.spread}

    def check(self, name: str, shape: torch.Size, size: int) -> None:
        if self.rank > size:
            raise ValueError(f"family low_rank: rank is {self.rank}, but {name} and others have {size} numbers")

    def initial(self, mean: Tensor, precision: Tensor, shape: torch.Size, noise: Callable[[int], Tensor]) -> State:
        deviation = precision.rsqrt()
        columns = torch.stack([noise(column) for column in range(self.rank)], 1)
        factor = deviation[:, None] * columns * (self.spread / math.sqrt(self.rank))
        return {"mean": mean.clone(), "variance": deviation.square(), "factor": factor}

    def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
        return state["mean"] + sign * (state["variance"].sqrt() * noise + state["factor"] @ extra)

    def mean(self, state: State) -> Tensor:
        return state["mean"]

    def variance(self, state: State) -> Tensor:
        return state["variance"] + state["factor"].square().sum(1)

    def covariance(self, state: State) -> Tensor:
        return state["variance"].diag() + state["factor"] @ state["factor"].mT

    def score(self, state: State, weights: Tensor, total: Total) -> Tensor:
        scaled = (weights - state["mean"]) / state["variance"]
        inner = torch.linalg.solve(_inner(state, total), total(state["factor"].mT @ scaled))
        return (state["factor"] @ inner) / state["variance"] - scaled

    def log_prob(self, state: State, weights: Tensor, total: Total) -> Tensor:
        offset = weights - state["mean"]
        inner, scaled = _inner(state, total), offset / state["variance"]
        projected = total(state["factor"].mT @ scaled)
        quadratic = total((offset * scaled).sum()) - projected @ torch.linalg.solve(inner, projected)
        count = total(torch.full_like(quadratic, len(offset)))
        return -0.5 * (quadratic + count * math.log(2 * math.pi) + _log_det(state, inner, total))

    def norm(self, state: State, vector: Tensor, total: Total) -> Tensor:
        return total((state["variance"] * vector.square()).sum()) + total(state["factor"].mT @ vector).square().sum()

    def parameters(self, anchor: State) -> State:
        """Mean step and log-variance step in marginal standard deviations, and U in those of the diagonal part."""
        zeros = torch.zeros_like(anchor["mean"])
        factor = anchor["factor"] / anchor["variance"].sqrt()[:, None]
        return {"step": zeros, "log_variance": zeros.clone(), "factor": factor}

    def candidate(self, anchor: State, parameters: Mapping[str, Tensor]) -> State:
        deviation = anchor["variance"].sqrt()
        marginal = (anchor["variance"] + anchor["factor"].square().sum(1)).sqrt()
        return {
            "mean": anchor["mean"] + marginal * parameters["step"],
            "variance": anchor["variance"] * parameters["log_variance"].exp(),
            "factor": deviation[:, None] * parameters["factor"],
        }

    def kl(self, p: State, q: State, total: Total) -> tuple[Tensor, Tensor]:
        scaled = q["factor"] / q["variance"][:, None]  # W U
        inner, cross = _inner(q, total), total(scaled.mT @ p["factor"])
        projected = total(scaled.mT @ (p["variance"][:, None] * scaled)) + cross @ cross.mT
        trace = total((p["variance"] / q["variance"]).sum() + (p["factor"].square() / q["variance"][:, None]).sum())
        trace = trace - torch.linalg.solve(inner, projected).diagonal().sum()
        count = total(torch.full_like(trace, len(p["mean"])))
        log_ratio = _log_det(q, inner, total) - _log_det(p, _inner(p, total), total)
        offset = p["mean"] - q["mean"]
        shift = total(scaled.mT @ offset)
        quadratic = total((offset.square() / q["variance"]).sum()) - shift @ torch.linalg.solve(inner, shift)
        return 0.5 * (trace - count + log_ratio), 0.5 * quadratic


def _inner(state: State, total: Total) -> Tensor:
    """M = I + U^T W U, (r, r)."""
    factor = state["factor"]
    gram = total(factor.mT @ (factor / state["variance"][:, None]))
    return gram + torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)


def _log_det(state: State, inner: Tensor, total: Total) -> Tensor:
    return total(state["variance"].log().sum()) + torch.linalg.slogdet(inner).logabsdet
