"""The mean-field Gaussian's iteration as plain arithmetic on flat tensors, number by number: to read, and to compile.

:mod:`proxscore.inference.kernels` runs these functions in place, as they are, or compiled, each as one pass over the memory.
A draw is theta = m + e with e of variance 1 / Lambda, and at it the score of the target is -c g - lambda (theta - m0): g the
gradient of the mean negative log-likelihood, c = data size / temperature, N(m0, 1 / lambda) the prior. A candidate (m', r
Lambda) has the score -r Lambda (theta - m'). The squared difference of the two, averaged over draws and divided by Lambda, is
a quadratic in r and in m'. Its minimum lies where r equals the *curvature statistic* k, and where m' = m + s / (r Lambda) with
the score s = -c g - lambda (m - m0) at the mean, g now averaged over draws and steps. A penalty keeps both near the anchor.
Source: M. Kim, arXiv 2602.05873; noise: Salmon et al., SC 2011.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from proxscore.inference.penalties import Penalty
from proxscore.inference.step import ProximalStep

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

#: A setting: a number, or a tensor without dimensions that holds it.
Number = float | Tensor


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words of 32 bits from a counter of four and a key of two, all as int64 below 2^32."""
    a, b, c, d = counter
    left, right = key
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((second >> 32) & _WORD) ^ b ^ left,
            second & _WORD,
            ((first >> 32) & _WORD) ^ d ^ right,
            first & _WORD,
        )
        left, right = (left + _WEYL[0]) & _WORD, (right + _WEYL[1]) & _WORD
    return a, b, c, d


def normals(key: Tensor, count: int) -> Tensor:
    """Standard normal numbers, (count, 4) in float32: those of :mod:`proxscore.inference.noise`.

    Args:
        key: the two words of the key, and the first counter, (3,) in int64.
    """
    counter = torch.arange(count, device=key.device) + key[2]
    zero = torch.zeros_like(counter)
    words = philox((counter & _WORD, (counter >> 32) & _WORD, zero, zero), (key[0], key[1]))
    found = []
    for radial, angular in (words[:2], words[2:]):
        radius = (((radial.float() + 0.5) * 2**-32).log() * -2).sqrt()
        angle = angular.float() * (2 * math.pi * 2**-32)
        found += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(found, -1)


def drawn(mean: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
    """m + z / sqrt(Lambda)."""
    return mean + noise * precision.rsqrt()


def bounded(values: Tensor, low: Number, high: Number) -> Tensor:
    """Values within bounds, both of which are numbers, or tensors."""
    return values.clamp(low, high)  # type: ignore[arg-type]  # of its two forms, which mypy does not see together


def reflected(weights: Tensor, mean: Tensor) -> Tensor:
    """The other half of an antithetic pair, 2 m - theta."""
    return mean + (mean - weights)


def curvature(gradient: Tensor, displacement: Tensor, precision: Tensor, prior: Number, scale: Number) -> Tensor:
    """k = e c g + lambda / Lambda of a single draw; by Stein's identity E k = -E d^2 log p / Lambda."""
    return gradient * displacement * scale + prior / precision


def paired_curvature(
    difference: Tensor, displacement: Tensor, precision: Tensor, prior: Number, scale: Number
) -> Tensor:
    """k = 1 + e (c (g+ - g-) / 2 - (Lambda - lambda) e) of a pair m + e, m - e, without the known fluctuation of e^2.

    Args:
        difference, displacement: g- - g+ and -e, those of the second draw, or both of opposite sign.
        scale: c / 2.
    """
    return (difference * scale - (precision - prior) * displacement) * displacement + 1


class Settings(NamedTuple):
    """What a step takes its numbers from; ``metric`` and what follows it are the adaptive metric's.

    Args:
        prior: lambda.
        score_scale: what the running gradient is multiplied with to be the likelihood's part of the score.
        taken: one minus the decay of the running gradient.
        kappa, kappa_mean: proximal weights of precision and mean, finite.
        lowest, highest: bounds of the precision ratio.
        move: largest step of the mean.
        metric: c / (lr sqrt(1 - decay^t)), what sqrt(v) is multiplied with.
        least: c / lr times Adam's epsilon.
        noise: c / sqrt(S kappa (1 - decay^t)) over how far noise may move a log-precision.
        unknown: infinite before there are squares, else zero.
        decay, added: of the running mean of squares, and one minus it.
    """

    prior: Number
    score_scale: Number
    taken: Number
    kappa: Number
    kappa_mean: Number
    lowest: Number
    highest: Number
    move: Number
    metric: Number = 0.0
    least: Number = 0.0
    noise: Number = 0.0
    unknown: Number = 0.0
    decay: Number = 0.0
    added: Number = 0.0

    @classmethod
    def of(cls, step: ProximalStep, prior: Number, squares: float) -> Settings:
        """Those of a step, for parameters of a prior's precision and of so many steps in the running mean of squares."""
        limit = math.inf if step.max_log_precision_step is None else step.max_log_precision_step
        general = cls(
            prior=prior,
            score_scale=step.score_scale,
            taken=1 - step.momentum,
            kappa=step.weights[0],
            kappa_mean=step.weights[1],
            lowest=math.exp(-limit),
            highest=math.exp(limit) if limit < 700 else math.inf,
            move=step.max_mean_step,
        )
        if step.metric is None:
            return general
        return general._replace(
            metric=step.metric.factor(squares),
            least=step.metric.least(squares),
            noise=step.metric.noise(squares, step.weights[0]),
            unknown=0.0 if squares > 0 else math.inf,
            decay=step.metric.decay,
            added=1 - step.metric.decay,
        )


def stepped(
    mean: Tensor,
    precision: Tensor,
    score: Tensor,
    square: Tensor | None,
    total: Tensor,
    statistic: Tensor,
    prior_mean: Tensor | None,
    penalty: Penalty,
    singles: bool,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """The proximal step, the same for each number.

    r minimises (r - k)^2 / 2 + P(r). The mean moves by u / (r + 2 kappa) standard deviations of u = s / sqrt(Lambda), or in
    Adam's metric M by s / (lambda + min(r Lambda - lambda, M) + M); :mod:`proxscore.inference.metric` says why k is held
    down there.

    Args:
        mean, precision, score, square: m, Lambda, and running means of g and, with Adam's metric, of its square.
        total, statistic: g and k, averaged over the step's draws.
        prior_mean: m0; none: zero.
        singles: whether k comes from single draws, and is held down.

    Returns:
        Mean, precision, the two running means, and the precision's ratio r.
    """
    s, k = settings, statistic
    if square is not None and singles:
        k = 1 + (k - 1) / ((square / precision).sqrt() * s.noise + s.unknown).clamp(min=1.0)
    r = penalty.precision_ratio(k, s.kappa)
    r = bounded(r, s.lowest, s.highest)
    score = score + (total - score) * s.taken
    pull = score * s.score_scale - (mean if prior_mean is None else mean - prior_mean) * s.prior
    if square is None:
        sd = precision.rsqrt()
        move = bounded(penalty.mean_step(pull * sd, r, s.kappa_mean), -s.move, s.move) * sd
        return mean + move, precision * r, score, None, r
    precision = precision * r
    metric = square.sqrt() * s.metric + s.least
    move = pull / ((precision - s.prior).clamp(min=0.0).minimum(metric) + metric + s.prior)
    return mean + bounded(move, -s.move, s.move), precision, score, square * s.decay + total * total * s.added, r
