"""What one iteration is made of: its draws, and the settings of its proximal step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from proxscore.inference.metric import Adaptive
from proxscore.inference.penalties import Penalty


@dataclass(frozen=True)
class Draw:
    """One draw of a step: what its weights are made of, and how its gradients count.

    Args:
        first: whether it is the first draw, or pair, that this process scores in the step.
        sign: 1 for a single draw and the first of a pair, -1 for the second.
        paired: whether it belongs to a pair.
        draws: how many draws, or pairs, the step has over all draw groups.
        scale: data size / temperature.
        prior_weight: factor on the prior's precision, in [0, 1]: below one while the prior enters.
        seed: seed of the noise; both draws of a pair have the same.
    """

    first: bool
    sign: float
    paired: bool
    draws: int
    scale: float
    prior_weight: float
    seed: int

    @property
    def last(self) -> bool:
        """Whether its gradients complete a draw: it is a single one, or the second of a pair."""
        return not (self.paired and self.sign > 0)


@dataclass(frozen=True)
class ProximalStep:
    """The settings of one proximal step.

    Args:
        weights: proximal weights (precision, mean) in force.
        score_scale: what the running gradient is multiplied with to be the likelihood's part of the score.
        momentum: decay of the running gradient.
        metric: the adaptive metric of the mean; none: that of the posterior.
        max_log_precision_step: trust region of the log-precision; none: unlimited.
        max_mean_step: trust region of the mean, in units of the weights with the adaptive metric, else in standard deviations.
        prior_weight: factor on the prior's precision, in [0, 1]: below one while the prior enters.
        factor: product of the learning rate, relative to the first one, and the mean's schedule.
        seed: seed of the step's last draw, at which a penalty without a closed form is estimated.
        number: how many steps before this one were not skipped.
        go: where the device alone knows whether the step is taken: true if it is, without dimensions; none: it is.
    """

    penalty: Penalty
    weights: tuple[float, float]
    score_scale: float = 1.0
    momentum: float = 0.0
    metric: Adaptive | None = None
    max_log_precision_step: float | None = None
    max_mean_step: float = math.inf
    prior_weight: float = 1.0
    factor: float = 1.0
    seed: int = 0
    number: int = 0
    go: Tensor | None = None
