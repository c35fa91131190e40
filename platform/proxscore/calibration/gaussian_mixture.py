"""Quantiles of equally weighted mixtures of Gaussians: of predictions whose draws differ in mean and noise.

F(y) = 1/S sum_s Phi((y - mean_s) / sd_s),    q(p) = the y with F(y) = p
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proxscore.calibration.quantiles import check_probabilities

_HALVINGS = 60  # of a bracket: its width times 2^-60


def quantiles(means: Tensor, sds: Tensor, probabilities: Sequence[float]) -> Tensor:
    """(Q, ...) quantiles, in the order of the probabilities, in the unit of the means; by bisection.

    Args:
        means, sds: (S, ...), of each component; sds are not negative.
        probabilities: between 0 and 1.

    Raises:
        ConfigError: a probability that is not between 0 and 1, or one that is there twice.
    """
    check_probabilities("quantiles", probabilities)
    means, sds = means.double(), sds.double().clamp_min(1e-300)
    found = []
    for probability in probabilities:
        own = means + sds * torch.special.ndtri(torch.tensor(probability, dtype=torch.float64))
        lower, upper = own.amin(0), own.amax(0)  # the mixture's lies between those of its components
        for _ in range(_HALVINGS):
            middle = (lower + upper) / 2
            below = torch.special.ndtr((middle - means) / sds).mean(0) < probability
            lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
        found.append((lower + upper) / 2)
    return torch.stack(found)
