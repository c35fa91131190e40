"""Prediction in one forward pass: the last layer is linear, so that its Gaussian weights give Gaussian outputs.

    f = W phi(x) + b ~ N(m, V),    m that of the mean weights,    V = Cov(W phi + b)

* numbers: y ~ N(m, V + s^2 I), exact;
* classes: p = softmax(m / sqrt(1 + pi/8 diag V)), MacKay's approximation (Neural Computation 4, 720, 1992; for many classes as in
  Daxberger et al., arXiv 2106.14806); of one logit the same with its sigmoid;
* anything, ``head_draws=S``: draws of the last layer alone, a matrix product each.

The layers before the last have their mean weights: what is uncertain there does not count, so that the prediction is surer than
that by draws of all weights. :func:`difference` tells by how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference.likelihoods import Bernoulli, Categorical, Gaussian
from proxscore.posterior.calls import Batches, batches_of, rows_of, to_device
from proxscore.posterior.draw_statistics import DrawStatistics
from proxscore.posterior.drawn import Drawn, drawn
from proxscore.posterior.head_covariance import HeadCovariance
from proxscore.posterior.last_layer import HeadDraws, LastLayer
from proxscore.posterior.posterior import Posterior
from proxscore.posterior.prediction import predicted
from proxscore.posterior.predictives import CategoricalPredictive, GaussianPredictive
from proxscore.posterior.running import checked_classes, log_probabilities, one_logit
from proxscore.posterior.settled import DrawCount, until_settled


@torch.no_grad()
def predict_in_one_pass(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior,
    *,
    likelihood: nn.Module | None = None,
    head_draws: DrawCount = 0,
    seed: int = 0,
    refresh: Batches | DrawStatistics | None = None,
    autocast: torch.dtype | None = None,
) -> Any:
    """The predictive distribution for all rows from one forward pass, the last layer's weights alone being uncertain.

    Args:
        module, batches, posterior, likelihood, seed, refresh, autocast: as of :func:`proxscore.posterior.predict`.
        head_draws: draws of the last layer, or ``"auto"``; 0: closed forms, which tell no ``expected_entropy`` (NaN).

    Returns:
        What :func:`proxscore.posterior.predict` returns.

    Raises:
        ConfigError: the network's last layer is not linear, the posterior has no covariance of it, or the likelihood has no
            closed form.
    """
    likelihood, rule = likelihood or Categorical(), until_settled(head_draws)
    with drawn(module, posterior, 0, seed, refresh, autocast) as found:
        if head_draws != 0:
            most = rule.most if rule is not None else head_draws
            assert isinstance(most, int)
            return predicted(HeadDraws(found, posterior, most, seed), batches, likelihood, rule)
        if not isinstance(likelihood, (Categorical, Bernoulli, Gaussian)):
            raise ConfigError(
                f"likelihood {type(likelihood).__name__} has no closed form: take draws of the last layer (head_draws=32)"
            )
        parts = list(_parts(found, batches, posterior, likelihood))
    if not parts:
        raise ConfigError("batches gave no rows: an iterator that was read before, or an empty loader")
    return type(parts[0]).joined(parts)


def _parts(found: Drawn, batches: Batches, posterior: Posterior, likelihood: nn.Module) -> Any:
    layer, covariance = LastLayer(found), None
    for inputs, targets in batches_of(batches):
        rows = rows_of(inputs) if targets is None else len(targets)
        phi, outputs = (each[:rows] for each in layer(to_device(inputs, found.device)))
        covariance = covariance or HeadCovariance(posterior, layer.weight, layer.bias or None, phi)
        outputs = outputs.to(phi)
        if isinstance(likelihood, Gaussian):
            yield _numbers(outputs, phi, covariance, likelihood, targets)
        else:
            yield _classes(outputs, covariance.variance(phi), targets, binary=isinstance(likelihood, Bernoulli))


def _classes(outputs: Tensor, variance: Tensor, targets: Tensor | None, *, binary: bool) -> CategoricalPredictive:
    if binary:
        one_logit(outputs)
    logs = log_probabilities(outputs / (1 + math.pi / 8 * variance).sqrt(), binary=binary).cpu()
    unknown = torch.full_like(logs[:, 0], math.nan)
    if targets is not None:
        targets = checked_classes(targets.cpu(), unknown, binary=binary)
    return CategoricalPredictive(logs, unknown, targets)


def _numbers(
    outputs: Tensor, phi: Tensor, covariance: HeadCovariance, likelihood: Gaussian, targets: Tensor | None
) -> GaussianPredictive:
    noise = (2 * likelihood.log_noise).exp().to(outputs).expand_as(outputs).clone()
    variance = covariance.variance(phi)
    if targets is None:
        targets, density = torch.full_like(outputs, math.nan), torch.full_like(outputs[:, 0], math.nan)
    else:
        if targets.shape != outputs.shape:
            raise ConfigError(
                f"targets of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(outputs.shape)}"
            )
        total = covariance.covariance(phi).double() + noise.double().diag_embed()
        normal = torch.distributions.MultivariateNormal(outputs.double(), total, validate_args=False)
        density = normal.log_prob(targets.to(outputs.device).double()).to(outputs)
    columns = (outputs, noise, variance, density, targets)
    return GaussianPredictive(*(column.cpu() for column in columns))


@dataclass(frozen=True)
class Difference:
    """How far one prediction of some rows is from another one, which is the better one.

    Attributes:
        kind: what ``mean`` and ``largest`` are of.
        mean, largest: over rows.
        nll, other_nll: nats per row, of the one and of the other; NaN where rows have no targets.
    """

    kind: str
    mean: float
    largest: float
    nll: float
    other_nll: float

    def __str__(self) -> str:
        nll = "" if math.isnan(self.nll) else f"; NLL {self.nll:.4f} against {self.other_nll:.4f}"
        return f"{self.kind} {self.mean:.4f} on average, {self.largest:.4f} at most{nll}"


def difference(one: Any, other: Any) -> Difference:
    """Compare a prediction with a better one of the same rows, such as that by many draws.

    Of classes it is the total variation 1/2 sum_c |p_c - q_c|; of labels the largest |p_c - q_c|; of numbers the larger one of
    the differences of means and of standard deviations, in units of the better one's standard deviation.

    Raises:
        ConfigError: they are of different rows.
    """
    if one.mean.shape != other.mean.shape:
        raise ConfigError(
            f"predictions of shapes {tuple(one.mean.shape)} and {tuple(other.mean.shape)}: they must be of the same rows"
        )
    if isinstance(one, GaussianPredictive):
        kind, sd = "difference in standard deviations", other.sd
        each = torch.maximum((one.mean - other.mean).abs(), (one.sd - other.sd).abs()) / sd
        each = each.flatten(1).amax(1)
    elif isinstance(one, CategoricalPredictive):
        kind, each = "total variation", (one.mean - other.mean).abs().sum(1) / 2
    else:
        kind, each = "difference of probabilities", (one.mean - other.mean).abs().amax(1)
    nlls = (_nll(prediction) for prediction in (one, other))
    return Difference(kind, float(each.double().mean()), float(each.amax()), *nlls)


def _nll(prediction: Any) -> float:
    if prediction.targets is None:
        return math.nan
    density = prediction.log_density.double()
    density = density.reshape(len(density), -1).sum(1)
    return float(-density[~density.isnan()].mean())
