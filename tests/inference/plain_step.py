"""The mean-field step in plain form: the formula to read, and the reference that the fast step is tested against.

The step that training runs is :func:`proxscore.inference.kernels.step_`, in place and over pieces of many
tensors; it equals this one to rounding (``tests/inference/test_mean_field_step.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proxscore.inference.metric import EPSILON, WANDER
from proxscore.inference.penalties import SMALLEST_RATIO, ForwardKL, NoPenalty, Penalty, Quadratic
from proxscore.inference.step import ProximalStep


def mean_field_step(
    mean: Tensor,
    precision: Tensor,
    score: Tensor,
    square: Tensor,
    displacement: Tensor,
    gradients: Tensor,
    prior_mean: Tensor,
    prior_precision: float,
    step: ProximalStep,
    scale: float,
    squares: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One proximal step of q = N(m, 1 / Lambda), the same for each of D coordinates.

    A draw is theta = m + e with e of variance 1 / Lambda, and at it the score of the target is -c g - lambda (theta - m0):
    g the gradient of the mean negative log-likelihood, c = data size / temperature, N(m0, 1 / lambda) the prior. A candidate
    (m', r Lambda) has the score -r Lambda (theta - m'). The squared difference of the two, averaged over draws and divided by
    Lambda, is a quadratic in r and in m'. Its minimum lies where r equals the *curvature statistic*

        k = e c g + lambda / Lambda                        single draw: by Stein's identity E k = -E d^2 log p / Lambda
        k = 1 + e (c (g+ - g-) / 2 - (Lambda - lambda) e)  pair m + e, m - e, without the known fluctuation of e^2

    and where m' = m + s / (r Lambda) with the score s = -c g - lambda (m - m0) at the mean, g now averaged over draws and
    steps. A penalty keeps both near the anchor: r then minimises (r - k)^2 / 2 + P(r), and the mean moves less, by
    u / (r + 2 kappa) standard deviations of u = s / sqrt(Lambda), or in Adam's metric M by
    s / (lambda + min(r Lambda - lambda, M) + M). :mod:`proxscore.inference.metric` says why k is held down there.

    Args:
        mean, precision, score, square: state before the step, (D,): m, Lambda, and running means of g and, with Adam's metric,
            of its square.
        displacement: e of each draw, or of the first of each pair, (draws, D).
        gradients: g of each, (draws, D), or of both of each pair, (draws, 2, D).
        prior_mean, prior_precision: m0, (D,), and lambda.
        step: penalty, weights and trust region.
        scale: c.
        squares: steps that ``square`` is a mean of.

    Returns:
        Mean, precision, and the running means of g and of its square, after the step.
    """
    e, c, (kappa, kappa_mean) = displacement, scale, step.weights
    if gradients.ndim == 3:
        k = 1 + e * (c * (gradients[:, 0] - gradients[:, 1]) / 2 - (precision - prior_precision) * e)
    else:
        k = e * c * gradients + prior_precision / precision
    k, g = k.mean(0), gradients.flatten(0, -2).mean(0)
    v = square / (1 - step.metric.decay**squares) if step.metric and squares else torch.full_like(mean, math.inf)
    if step.metric and step.metric.singles:
        k = 1 + (k - 1) * (kappa**0.5 * WANDER / c * (step.metric.singles * precision / v).sqrt()).clamp(max=1)
    limit = math.inf if step.max_log_precision_step is None else step.max_log_precision_step
    r = precision_ratio(step.penalty, k, kappa).clamp(math.exp(-limit), math.exp(limit))
    score = step.momentum * score + (1 - step.momentum) * g
    s = step.score_scale * score - prior_precision * (mean - prior_mean)
    if step.metric is None:
        u = s / precision.sqrt()
        move = whitened_move(step.penalty, u, r, kappa_mean).clamp(-step.max_mean_step, step.max_mean_step)
        return mean + move / precision.sqrt(), r * precision, score, square
    adam = c * (v.sqrt() + EPSILON) / step.metric.lr
    move = s / (prior_precision + (r * precision - prior_precision).clamp(min=0).minimum(adam) + adam)
    square = step.metric.decay * square + (1 - step.metric.decay) * g**2
    return mean + move.clamp(-step.max_mean_step, step.max_mean_step), r * precision, score, square


def precision_ratio(penalty: Penalty, k: Tensor, kappa: float) -> Tensor:
    """The minimiser r of (r - k)^2 / 2 + P(r); the penalties' derivations are in :mod:`proxscore.inference.penalties`."""
    if isinstance(penalty, ForwardKL):
        return ((k - kappa) + ((k - kappa) ** 2 + 4 * kappa).sqrt()) / 2
    if isinstance(penalty, (Quadratic, NoPenalty)):
        return ((k + kappa) / (1 + kappa) if isinstance(penalty, Quadratic) else k).clamp(min=SMALLEST_RATIO)
    # Reverse: the root of r^3 - k r^2 + kappa r - kappa nearest to the anchor's ratio, 1, among a matrix's eigenvalues.
    companion = torch.diag_embed(torch.ones(len(k), 2).to(k), offset=-1)
    companion[:, 0] = torch.stack([k, torch.full_like(k, -kappa), torch.full_like(k, kappa)], 1)
    roots = torch.linalg.eigvals(companion)
    real = roots.real.masked_fill(roots.imag.abs() > 1e-9, math.inf)
    return real.gather(1, (real - 1).abs().argmin(1, keepdim=True))[:, 0].clamp(1 / 3, 3)


def whitened_move(penalty: Penalty, u: Tensor, r: Tensor, kappa: float) -> Tensor:
    """How far the mean moves, in standard deviations of the anchor, given its statistic u and the precision ratio r."""
    if isinstance(penalty, ForwardKL):
        return u / (r + 2 * kappa)
    if isinstance(penalty, Quadratic):
        return u / (r * (1 + 2 * kappa))
    return u / r if isinstance(penalty, NoPenalty) else u * r / (r**2 + 2 * kappa)
