"""The mean-field Gaussian: q(theta) = N(m, diag(1 / Lambda)).

Its proximal step has a closed form: :func:`proxscore.inference.elementwise.stepped`. Source: M. Kim, arXiv 2602.05873.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from proxscore.inference.families.base import Family, State, Total


class MeanField(Family):
    """Mean-field Gaussian family. State: ``mean`` (D,), ``precision`` (D,)."""

    kind = "mean_field"
    shardable = True

    def initial(self, mean: Tensor, precision: Tensor, shape: torch.Size, noise: Callable[[int], Tensor]) -> State:
        return {"mean": mean.clone(), "precision": precision.clone()}

    def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
        return state["mean"] + sign * noise * state["precision"].rsqrt()

    def mean(self, state: State) -> Tensor:
        return state["mean"]

    def variance(self, state: State) -> Tensor:
        return state["precision"].reciprocal()

    def covariance(self, state: State) -> Tensor:
        return self.variance(state).diag()

    def score(self, state: State, weights: Tensor, total: Total) -> Tensor:
        return (state["mean"] - weights) * state["precision"]

    def log_prob(self, state: State, weights: Tensor, total: Total) -> Tensor:
        precision = state["precision"]
        white = precision.log() - precision * (weights - state["mean"]).square() - math.log(2 * math.pi)
        return total(0.5 * white.sum())

    def norm(self, state: State, vector: Tensor, total: Total) -> Tensor:
        return total((vector.square() / state["precision"]).sum())

    def parameters(self, anchor: State) -> State:
        """Steps of the mean in standard deviations, and of the log-precision."""
        return {name: torch.zeros_like(anchor["mean"]) for name in ("step", "log_ratio")}

    def candidate(self, anchor: State, parameters: Mapping[str, Tensor]) -> State:
        mean = anchor["mean"] + parameters["step"] * anchor["precision"].rsqrt()
        return {"mean": mean, "precision": anchor["precision"] * parameters["log_ratio"].exp()}

    def kl(self, p: State, q: State, total: Total) -> tuple[Tensor, Tensor]:
        ratio = q["precision"] / p["precision"]
        offset = (p["mean"] - q["mean"]).square() * q["precision"]
        return total(0.5 * (ratio - 1 - ratio.log()).sum()), total(0.5 * offset.sum())
