"""The metric in which the proximal penalty measures a step of the mean.

The penalty of the mean may be taken in any metric that does not depend on the current mini-batch: the fixed point stays the
posterior's, as the step is zero where the expected score is, and the step stays linear in the score, so its expectation over
mini-batches is the full batch's. Two are built.

*The posterior's* (``metric="posterior"``), of :mod:`proxscore.inference.penalties`: steps are in posterior standard
deviations. It is the natural gradient, invariant to the weights' units, and reaches exact posteriors of small models. For
a network it is one constant where the loss has many curvatures, and the step falls with the initial precision.

*The adaptive one* (``metric="adaptive"``), that of Adam:

    P(q_t, q) = 1/2 (m - m_t)^T M_t (m - m_t),     M_t = diag( (N / T) (sqrt(v_t) + eps) / lr )

with N / T data size over temperature, v_t the bias-corrected running mean of squared gradients of the mean negative
log-likelihood **up to iteration t - 1**, and lr the learning rate. The score-matching loss of the mean is
1/2 (Lambda (m - m_t) - s)^2 / Lambda_t at the candidate's precision Lambda = r Lambda_t; with the penalty taken, as the
Kullback-Leibler one, at the candidate's precision (r M_t in place of M_t), setting the derivative to zero gives

    m  <-  m_t + s / (r Lambda_t + M_t)                                              elementwise, in closed form.

A posterior that starts tighter than it is to become (so that its draws cost little) would bind the mean by that: r Lambda_t
is then not the curvature that it estimates. So of the likelihood's part of it no more counts than the metric itself,

    m  <-  m_t + s / (lambda + min(r Lambda_t - lambda, M_t) + M_t),                 lambda: the prior's precision,

which leaves the fixed point, s = 0, and lies between half of the metric's step and the whole. (A full covariance, for small
models, takes r Lambda_t as it is.) Where precision and prior are negligible, s = -(N / T) g, and this is Adam's step
-lr g / (sqrt(v) + eps), with the squares of the steps before; lr stands for half as much where the posterior is tight. The
prior's precision keeps the step finite where a gradient vanishes. In the first step v is unknown: the mean stays where it
is.

*The precision's step.* With single draws the curvature statistic k = e c g + lambda / Lambda (c = N / T, e the draw's
displacement, of variance 1 / Lambda) has noise of standard deviation

    sigma = c sqrt(v / (Lambda S))          S: draws per step,

which grows with the data's number and with the gradients: of a forecaster's windows, sums over their steps, it is hundreds
of times the one that k is compared with. Beyond what the proximal weight kappa bears, the log-precision is moved by noise
alone, by sigma / kappa in each of about kappa steps, and standard deviations run away within a few hundred. So the mean field
takes

    k  <-  1 + f (k - 1),                   f = min(1, sqrt(kappa) / (3 sigma)),

a proximal weight of max(kappa, 3 sigma sqrt(kappa)) to first order: noise alone moves no log-precision by more than a third
(root mean square) in kappa steps. v is of the steps before, so E k = 1 stays the fixed point, and k's expectation over
mini-batches is the full batch's. What the noise drowns does not arrive in the run, and the verdict says so. In a pair's k the
gradient that both draws have in common cancels, so pairs are left as they are.

Sources: M. Kim, arXiv 2602.05873; Adam, Kingma and Ba, arXiv 1412.6980.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Metric = Literal["adaptive", "posterior"]

#: Adam's epsilon, which keeps zero out of the denominator.
EPSILON = 1e-8
#: How far noise alone may move a log-precision (root mean square) in as many steps as its proximal weight.
WANDER = 1 / 3
#: The learning rate where none is given.
LR = 4e-3


@dataclass(frozen=True)
class Adaptive:
    """The adaptive metric of one step, with what it does to the curvature statistic.

    Args:
        lr: the learning rate in force; zero: the mean stays where it is.
        scale: data size / temperature.
        decay: decay of the running mean of squares, in [0, 1).
        singles: how many single draws a step has, whose curvature statistic is held down; none: it has pairs.
    """

    lr: float
    scale: float
    decay: float
    singles: int | None = None

    def factor(self, squares: float) -> float:
        """What sqrt(v) is multiplied with to be M, without Adam's epsilon, where so many steps are in v."""
        return self.scale / self.lr * self._correction(squares) if squares > 0 and self.lr > 0 else 0.0

    def least(self, squares: float) -> float:
        """M where v is zero; infinite where v is not known yet, or nothing may move."""
        return self.scale / self.lr * EPSILON if squares > 0 and self.lr > 0 else math.inf

    def noise(self, squares: float, weight: float) -> float:
        """What sqrt(v / Lambda) is multiplied with to be 1 / f for the proximal weight ``weight`` of the precision."""
        if self.singles is None or squares == 0:
            return 0.0
        return self.scale / math.sqrt(self.singles * weight) / WANDER * self._correction(squares)

    def of(self, square: Tensor, squares: float) -> Tensor:
        """The metric M_t, from the running mean of squared gradients and the number of steps that are in it."""
        return square.sqrt() * self.factor(squares) + self.least(squares)

    def _correction(self, squares: float) -> float:
        return (1 - self.decay**squares) ** -0.5
