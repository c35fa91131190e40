"""Stacking: the weights of a mixture's components, from predictions on validation data.

Scores cannot see the weights of well-separated components, so a mixture is trained with uniform ones. Afterwards

    w = argmax over the simplex  1/N sum_i log sum_k w_k p(y_i | x_i, component k)

with each component's predictive distribution averaged over its own draws: a concave problem. Source: Y. Yao, A. Vehtari,
D. Simpson and A. Gelman, Using stacking to average Bayesian predictive distributions, Bayesian Analysis 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.inference import MeanField, Mixture
from proxscore.inference.layout import Layout
from proxscore.posterior.posterior import Joint, Posterior

#: Least weight of a component: a weight of zero could not be told from a component that is not there.
LEAST = 1e-6


class Predicted(Protocol):
    """A predictive distribution of some rows; see :func:`proxscore.posterior.predict`."""

    targets: Tensor

    @property
    def log_density(self) -> Tensor: ...


def wants_stacking(posterior: Posterior) -> bool:
    """Whether a family of the posterior asks for stacked weights."""
    return any(isinstance(joint.layout.family, Mixture) and joint.layout.family.stacked for joint in posterior.joint)


def stack(posterior: Posterior, predict: Callable[[Posterior], Predicted]) -> tuple[Posterior, list[float]]:
    """The posterior with stacked mixture weights, and its mean with it.

    Args:
        predict: the predictive distribution of this rank's validation rows under a posterior; it is called once per
            component. Every rank must take part.

    Returns:
        The posterior, and the weights.

    Raises:
        ConfigError: it has no mixture, or several; or the rows are others in one call than in the next.
    """
    mixtures = [joint for joint in posterior.joint if isinstance(joint.layout.family, Mixture)]
    if len(mixtures) != 1:
        raise ConfigError(f"stacking needs one mixture in a posterior; this one has {len(mixtures)}")
    (joint,) = mixtures
    family = joint.layout.family
    assert isinstance(family, Mixture)
    others = [other for other in posterior.joint if other is not joint]
    columns, targets = [], None
    for component in range(family.components):
        state = {"mean": joint.state["means"][:, component], "precision": joint.state["precisions"][:, component]}
        alone = Joint(Layout(MeanField(), joint.layout.members), state)
        predicted = predict(replace(posterior, joint=[*others, alone]))
        if targets is not None and not torch.equal(targets, predicted.targets):
            raise ConfigError("stacking needs the same rows in the same order for every component: do not shuffle them")
        targets = predicted.targets
        columns.append(predicted.log_density.flatten().double())
    densities = torch.stack(columns, 1)
    if dist.is_initialized() and dist.get_world_size() > 1:
        parts: list[Tensor] = [densities] * dist.get_world_size()
        dist.all_gather_object(parts, densities)
        densities = torch.cat(parts)
    weights = stacking_weights(densities)
    weighted = Mixture(family.components, family.spread, weights.tolist())
    layout = Layout(weighted, joint.layout.members)
    mean = posterior.mean | {name: torch.empty_like(posterior.mean[name]) for name in joint.names}
    layout.put(weighted.mean(joint.state), (mean[name] for name in joint.names))
    return replace(posterior, mean=mean, joint=[*others, Joint(layout, joint.state)]), weighted.weights


def stacking_weights(log_densities: Tensor, tolerance: float = 1e-6, iterations: int = 100_000) -> Tensor:
    """The weights that maximise the mean log predictive density of held-out rows, by expectation maximisation.

    Args:
        log_densities: (N, K), log p(y_i | x_i, component k).
        tolerance: the mean log density is within it of the maximum: max_k of its derivative, minus one, bounds the gap.

    Returns:
        (K,), at least ``LEAST``, summing to one.

    Raises:
        ValueError: no rows, or values that are not finite.
    """
    if log_densities.ndim != 2 or not len(log_densities):
        raise ValueError(f"log_densities has shape {tuple(log_densities.shape)}; it must be rows by components")
    if not log_densities.isfinite().all():
        raise ValueError("log_densities must be finite")
    # Only ratios within a row count.
    densities = (log_densities.double() - log_densities.max(1, keepdim=True).values).exp()
    weights = torch.full_like(densities[0], 1 / densities.shape[1])
    for _ in range(iterations):
        slope = (densities / (densities @ weights)[:, None]).mean(0)
        if slope.max() < 1 + tolerance:
            break
        weights = weights * slope
    weights = weights.clamp_min(LEAST)
    return weights / weights.sum()
