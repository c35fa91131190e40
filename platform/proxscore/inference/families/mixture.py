"""The mixture of K mean-field Gaussians: q(theta) = sum_k w_k N(m_k, diag(1 / Lambda_k)).

The score is the responsibility-weighted sum of the components' scores. Scores cannot see the weights of well-separated
components, so the weights are no variational parameters: uniform, or set afterwards (by stacking on validation NLL).
No closed-form step: the gradient solver. Source: M. Kim, arXiv 2602.05873.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from proxscore.config.bounds import Bounds
from proxscore.inference.families.base import Family, State, Total


class Mixture(Family):
    """Mixture of mean-field Gaussians. State: ``means`` (D, K), ``precisions`` (D, K).

    Args:
        components: K, at least 1.
        spread: distance of the components' first means from the network's weights, in standard deviations, in random
            directions. Two modes are found if a component starts nearer to each: in ten dimensions, of eight random
            starts, one to three ended with both components at one mode.
        weights: ``uniform``; or w, K positive numbers that are normalised to sum to one; or ``stacked``: uniform in
            training, and set afterwards by :func:`proxscore.posterior.stacking.stack`.
    """

    kind = "mixture"
    shardable = True
    extra = 1

    def __init__(
        self,
        components: Annotated[int, Bounds(ge=1, le=1000)] = 2,
        spread: Annotated[float, Bounds(gt=0)] = 1.0,
        weights: list[float] | Literal["uniform", "stacked"] = "uniform",
    ) -> None:
        if components < 1:
            raise ValueError(f"family mixture: components is {components}; it must be at least 1")
        if not spread > 0:
            raise ValueError(f"family mixture: spread is {spread}; it must be positive")
        self.stacked = weights == "stacked"
        equal = weights in ("uniform", "stacked")
        values = [1.0] * components if equal else [float(weight) for weight in weights if not isinstance(weight, str)]
        if len(values) != components or not all(0 < value < math.inf for value in values):
            raise ValueError(
                f"family mixture: weights is {weights}; it must be 'uniform', 'stacked' or {components} positive numbers"
            )
        self.components, self.spread = components, spread
        self.weights = [value / sum(values) for value in values]

    def settings(self) -> dict[str, Any]:
        return {"components": self.components, "spread": self.spread, "weights": self.weights}

    def initial(self, mean: Tensor, precision: Tensor, shape: torch.Size, noise: Callable[[int], Tensor]) -> State:
        offsets = torch.stack([noise(component) for component in range(self.components)], 1) * self.spread
        if self.components == 1:
            offsets = torch.zeros_like(offsets)
        means = mean[:, None] + offsets * precision.rsqrt()[:, None]
        return {"means": means, "precisions": precision[:, None].expand_as(means).clone()}

    def component(self, extra: Tensor) -> int:
        """Which component a draw comes from: the standard normal number's quantile, in the weights."""
        uniform, reached = torch.special.ndtr(extra[0].double()).item(), 0.0
        for index, weight in enumerate(self.weights):
            reached += weight
            if uniform < reached:
                return index
        return self.components - 1

    def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
        index = self.component(extra)
        return state["means"][:, index] + sign * noise * state["precisions"][:, index].rsqrt()

    def mean(self, state: State) -> Tensor:
        return state["means"] @ self._weights(state)

    def variance(self, state: State) -> Tensor:
        """Within the components, and between their means."""
        weights, offsets = self._weights(state), state["means"] - self.mean(state)[:, None]
        return (1 / state["precisions"] + offsets.square()) @ weights

    def covariance(self, state: State) -> Tensor:
        weights, offsets = self._weights(state), state["means"] - self.mean(state)[:, None]
        return (offsets * weights) @ offsets.mT + ((1 / state["precisions"]) @ weights).diag()

    def score(self, state: State, weights: Tensor, total: Total) -> Tensor:
        responsibilities = self._log_joint(state, weights, total).softmax(0)
        return ((state["means"] - weights[:, None]) * state["precisions"]) @ responsibilities

    def log_prob(self, state: State, weights: Tensor, total: Total) -> Tensor:
        return self._log_joint(state, weights, total).logsumexp(0)

    def norm(self, state: State, vector: Tensor, total: Total) -> Tensor:
        """With the variance within components: that between them would make narrow components invisible."""
        within = (1 / state["precisions"]) @ self._weights(state)
        return total((within * vector.square()).sum())

    def kl(self, p: State, q: State, total: Total) -> tuple[Tensor, Tensor]:
        """The divergence of the joint distributions of component and theta, sum_k w_k KL(p_k || q_k): an upper bound.

        That of the mixtures themselves has no closed form; by the chain rule it is no larger.
        """
        ratio = q["precisions"] / p["precisions"]
        offset = (p["means"] - q["means"]).square() * q["precisions"]
        precision, mean = 0.5 * (ratio - 1 - ratio.log()), 0.5 * offset
        weights = self._weights(p)
        return total((precision @ weights).sum()), total((mean @ weights).sum())

    def parameters(self, anchor: State) -> State:
        """Steps of the means in their own standard deviations, and of the log-precisions."""
        return {name: torch.zeros_like(anchor["means"]) for name in ("steps", "log_ratios")}

    def candidate(self, anchor: State, parameters: Mapping[str, Tensor]) -> State:
        means = anchor["means"] + parameters["steps"] * anchor["precisions"].rsqrt()
        return {"means": means, "precisions": anchor["precisions"] * parameters["log_ratios"].exp()}

    def _log_joint(self, state: State, weights: Tensor, total: Total) -> Tensor:
        """log w_k + log N(theta; m_k, 1 / Lambda_k), (K,)."""
        precisions = state["precisions"]
        white = precisions.log() - precisions * (weights[:, None] - state["means"]).square() - math.log(2 * math.pi)
        return total(0.5 * white.sum(0)) + self._weights(state).log()

    def _weights(self, state: State) -> Tensor:
        return state["means"].new_tensor(self.weights)
