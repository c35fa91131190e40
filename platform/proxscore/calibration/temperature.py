"""Temperature scaling of a predictive distribution: one number, fitted on held-out rows.

    p_T(c | x) = p(c | x)^(1/T) / sum_c' p(c' | x)^(1/T)

with p the *averaged* predictive over draws or members: for one network this is the division of logits by T (Guo et al., On
calibration of modern neural networks, arXiv 1706.04599). For averages, the order is pool, then calibrate: scaling each
member's logits before the average leaves ensembles of small networks underconfident (Rahaman and Thiery, Uncertainty
quantification and deep ensembles, arXiv 2007.08792); and no draws need to be kept.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from proxscore.posterior import CategoricalPredictive

HOTTEST = 100.0
LEAST = -1e4  # of a log-probability: minus infinity times zero is no number


def fit_temperature(predictive: CategoricalPredictive, device: torch.device | None = None) -> float:
    """T of the smallest negative log-likelihood, in [1 / 100, 100], by bisection of its derivative by 1 / T.

    The negative log-likelihood is convex in 1 / T. A collective: every rank calls it with its rows, or with none.

    Args:
        predictive: of held-out rows.
        device: that the process group can reduce on.
    """
    logs = predictive.log_probabilities.double().clamp_min(LEAST)
    correct = logs.gather(1, predictive.targets.long().unsqueeze(1)).sum()

    def slope(sharpness: float) -> float:
        mean: Tensor = ((logs * sharpness).softmax(1) * logs).sum() - correct
        if dist.is_initialized() and dist.get_world_size() > 1:
            mean = mean.to(device)
            dist.all_reduce(mean)
        return mean.item()

    low, high = -math.log(HOTTEST), math.log(HOTTEST)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def tempered(predictive: CategoricalPredictive, temperature: float) -> CategoricalPredictive:
    """The predictive at a temperature. It has no draws: its expected entropy is its entropy."""
    logs = (predictive.log_probabilities.clamp_min(LEAST) / temperature).log_softmax(1)
    return CategoricalPredictive(logs, -(logs.exp() * logs).sum(1), predictive.targets)
