"""The settings of a proximal step, for tests that call a family's step itself."""

from __future__ import annotations

import math
from typing import Any

from proxscore.inference.penalties import Penalty
from proxscore.inference.step import ProximalStep


def step_of(penalty: Penalty, weights: tuple[float, float], **settings: Any) -> ProximalStep:
    """In the posterior's metric, without a trust region, the prior entire, no momentum."""
    defaults: dict[str, Any] = dict(
        score_scale=1.0,
        momentum=0.0,
        metric=None,
        max_log_precision_step=None,
        max_mean_step=math.inf,
        prior_weight=1.0,
        factor=1.0,
        seed=0,
        number=0,
    )
    return ProximalStep(penalty=penalty, weights=weights, **defaults | settings)
