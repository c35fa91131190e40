"""Settings of :class:`proxscore.inference.ProximalScore`, for posteriors that have to be right and for networks.

    exact(steps, numbers)   up to a few hundred numbers, a mean field or a full covariance: closed-form steps that arrive
    network(steps)          a network of any size, trained as Adam trains it

The log-precision of a coordinate travels sum_t 1 / kappa_t in a run, and noise of its curvature statistic leaves a bias of
var(k) / kappa_t: so the weights begin small and grow without bound (cosine), and several pairs of draws are scored per step.
A full covariance of D numbers from S pairs needs a weight of about D / (2 S): below it, the statistic's noise, matrices of rank
two with eigenvalues of order D, moves more than is learned.
"""

from __future__ import annotations

import math
from typing import Any

from proxscore.inference.families import Family, FullCovariance, MeanField
from proxscore.inference.penalties import ForwardKL
from proxscore.inference.schedules import Schedule


def exact(steps: int, numbers: int, family: Family | None = None, draws: int | None = None) -> dict[str, Any]:
    """Keyword arguments of ``ProximalScore`` for an exact posterior of a few hundred numbers, by the length of the run.

    Pairs of draws, closed form, both weights by cosine, and a mean whose step is limited far beyond what a run needs. Start
    at about the posterior's width (``initial_precision``; :func:`proxscore.density.fit` measures it): tighter costs steps,
    much wider costs many.

    Args:
        steps: length of the run; about 1,000, and for a full covariance some 10 D / S at least.
        numbers: D, the numbers that are sampled.
        family: mean field (default) or full covariance; others take the gradient solver, and these weights serve them, too.
        draws: S, pairs per step; none: 2, of a full covariance 4, or D / 8 where that is more.
    """
    full = isinstance(family, FullCovariance)
    pairs = draws or (max(4, math.ceil(numbers / 8)) if full else 2)
    cosine = Schedule("cosine", length=steps)
    weight = max(4.0, numbers / pairs) if full else 10.0
    return dict(
        family=family or MeanField(),
        penalty=ForwardKL(weight, 0.5, cosine, cosine),
        draws=pairs,
        paired=True,
        metric="posterior",
        momentum=0.0 if full else 0.9,
        max_log_precision_step=1.0,
        max_mean_step=100.0,
    )


def network(steps: int) -> dict[str, Any]:
    """Keyword arguments of ``ProximalScore`` for a network, by the length of its training.

    The rest are the optimizer's defaults, which are a job's, too. The learning rate rises over a twentieth of the run and falls
    to zero by a cosine; the precision's weight is the number of steps, so that a log-precision may travel about one.

    Args:
        steps: length of the run, at least 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    cosine = Schedule("cosine", warmup=0.05 * steps, length=steps)
    return dict(penalty=ForwardKL(float(steps), mean_schedule=cosine))
