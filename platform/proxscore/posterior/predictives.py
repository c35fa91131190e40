"""Predictive distributions of a data set's rows, by likelihood, and their running sums over the draws of a posterior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, MultiLabel


class Running(ABC):
    """Sums over the draws for the rows of one batch.

    Args:
        likelihood: of targets given the network's outputs.
    """

    @abstractmethod
    def __init__(self, likelihood: nn.Module) -> None: ...

    @abstractmethod
    def add(self, outputs: Tensor) -> None:
        """The network's outputs under the next draw."""

    @abstractmethod
    def predictive(self, targets: Tensor | None) -> Any:
        """The batch's predictive distribution."""


@dataclass
class CategoricalPredictive:
    """p(y | x) = 1/S sum_s softmax(f(x; theta_s)) for the rows of a data set, on the CPU.

    A Bernoulli likelihood gives two classes: C = 2, of which class 1 has probability sigmoid(f).

    Attributes:
        log_probabilities: (N, C) or (N, C, ...), natural logarithm of the predictive probabilities.
        expected_entropy: (N,) or (N, ...), mean over draws of the entropy of softmax(f), in nats.
        targets: (N,) or (N, ...), as the data gave them; none, where they gave none.
    """

    log_probabilities: Tensor
    expected_entropy: Tensor
    targets: Any

    @property
    def mean(self) -> Tensor:
        """Predictive probabilities, shaped as ``log_probabilities``."""
        return self.log_probabilities.exp()

    @property
    def log_density(self) -> Tensor:
        """Log-probability of each target, shaped as ``targets``."""
        if self.targets is None:
            raise ConfigError("these rows have no targets, so that nothing is known of their density")
        return self.log_probabilities.gather(1, self.targets.long().unsqueeze(1)).squeeze(1)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after another."""
        return cls(*(_joined(parts, column) for column in ("log_probabilities", "expected_entropy", "targets")))


@dataclass
class GaussianPredictive:
    """p(y | x) = 1/S sum_s N(y; f(x; theta_s), s^2): a mixture of Gaussians for each output of each row, on the CPU.

    The noise s is one number, or a function of inputs and weights.

    Attributes:
        mean: (N, ...), shaped as the outputs, in units of the target, as all that follows (variances squared).
        aleatoric: (N, ...), the noise's variance s^2, averaged over draws.
        epistemic: (N, ...), the variance over draws of f.
        log_density: (N,), log 1/S sum_s p(y | f_s), all outputs of a row together, in nats; NaN where there is no target.
        targets: (N, ...), as the data gave them.
    """

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    log_density: Tensor
    targets: Tensor

    @property
    def sd(self) -> Tensor:
        """Standard deviation of the predictive distribution: of noise and weights together."""
        return (self.aleatoric + self.epistemic).sqrt()

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after another."""
        columns = ("mean", "aleatoric", "epistemic", "log_density", "targets")
        return cls(*(_joined(parts, column) for column in columns))


@dataclass
class MultiLabelPredictive:
    """p(y_c = 1 | x) = 1/S sum_s sigmoid(f_c(x; theta_s)) of C labels for the rows of a data set, on the CPU.

    Attributes:
        probabilities: (N, C), of each label by itself.
        expected_entropy: (N,), mean over draws of the entropy of all labels together, in nats.
        log_density: (N,), log 1/S sum_s prod_c p(y_c | x, theta_s) of all labels of a row together, in nats.
        targets: (N, C), zeros and ones.
    """

    probabilities: Tensor
    expected_entropy: Tensor
    log_density: Tensor
    targets: Tensor

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.probabilities

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after another."""
        columns = ("probabilities", "expected_entropy", "log_density", "targets")
        return cls(*(_joined(parts, column) for column in columns))


class RunningCategorical(Running):
    """A running log-sum-exp of N x C log-probabilities and N entropies: never S x N x C."""

    def __init__(self, likelihood: nn.Module) -> None:
        self._binary = isinstance(likelihood, Bernoulli)
        self._count, self._log_sum, self._entropy_sum = 0, torch.empty(0), torch.empty(0)

    def add(self, outputs: Tensor) -> None:
        logs = self._log_probabilities(_precise(outputs))
        entropy = -(logs.exp() * logs).sum(1).cpu()
        logs = logs.cpu()
        if self._count:
            torch.logaddexp(self._log_sum, logs, out=self._log_sum)
            self._entropy_sum += entropy
        else:
            self._log_sum, self._entropy_sum = logs, entropy
        self._count += 1

    def _log_probabilities(self, outputs: Tensor) -> Tensor:
        if self._binary:
            if outputs.ndim == 2 and outputs.shape[1] == 1:
                outputs = outputs[:, 0]
            if outputs.ndim != 1:
                raise ConfigError(
                    f"a Bernoulli likelihood needs one logit per row; the network returns {_shape(outputs)}"
                )
            return nn.functional.logsigmoid(torch.stack([-outputs, outputs], 1))
        if outputs.ndim < 2 or outputs.shape[1] < 2:
            raise ConfigError(
                f"the network returns {_shape(outputs)}: one output per row is no distribution over classes; pass "
                "likelihood=Bernoulli() for the logit of two classes, or the Gaussian() of a regression"
            )
        return outputs.log_softmax(1)

    def predictive(self, targets: Tensor | None) -> CategoricalPredictive:
        if targets is None:
            return CategoricalPredictive(self._log_sum - math.log(self._count), self._entropy_sum / self._count, None)
        targets = targets.cpu()
        if self._binary and targets.ndim == 2 and targets.shape[1] == 1:
            targets = targets[:, 0]
        if targets.shape != self._entropy_sum.shape:
            shape = tuple(self._entropy_sum.shape)
            raise ConfigError(f"targets of shape {tuple(targets.shape)} do not fit predictions for {shape}")
        return CategoricalPredictive(self._log_sum - math.log(self._count), self._entropy_sum / self._count, targets)


class _EveryDraw(Running):
    """The outputs of all draws for one batch: S x B numbers per output."""

    def __init__(self, likelihood: Any) -> None:
        self._likelihood = likelihood
        self._outputs: list[Tensor] = []

    def add(self, outputs: Tensor) -> None:
        self._outputs.append(_precise(outputs))

    def _density(self, targets: Tensor) -> Tensor:
        """Log of the average over draws of the density of each row's targets, (N,); NaN where there are none."""
        each = torch.stack([-self._likelihood.nll(draw, targets) for draw in self._outputs])
        return each.double().logsumexp(0).to(self._outputs[0]) - math.log(len(each))


class RunningMultiLabel(_EveryDraw):
    """Probabilities of labels, and the density of all labels of a row together."""

    def predictive(self, targets: Tensor | None) -> MultiLabelPredictive:
        outputs = torch.stack(self._outputs)
        targets = _checked(targets, outputs[0])
        p = outputs.sigmoid()
        entropy = nn.functional.binary_cross_entropy_with_logits(outputs, p, reduction="none").sum(2).mean(0)
        return MultiLabelPredictive(p.mean(0).cpu(), entropy.cpu(), self._density(targets).cpu(), targets.cpu())


class RunningGaussian(_EveryDraw):
    """Means, and the variances of noise and draws."""

    def predictive(self, targets: Tensor | None) -> GaussianPredictive:
        moments = [self._moments(draw) for draw in self._outputs]
        means = torch.stack([mean for mean, _ in moments])
        noise = torch.stack([variance for _, variance in moments]).mean(0)
        targets = _checked(targets, means[0])
        columns = (means.mean(0), noise, means.var(0, correction=0), self._density(targets), targets)
        return GaussianPredictive(*(column.cpu() for column in columns))

    def _moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the targets under one draw."""
        if isinstance(self._likelihood, HeteroscedasticGaussian):
            mean, noise = self._likelihood.moments(outputs)
            return mean, noise.square()
        return outputs, (2 * self._likelihood.log_noise).exp().to(outputs).expand_as(outputs).clone()


RUNNING: dict[type[nn.Module], type[Running]] = {
    Categorical: RunningCategorical,
    Bernoulli: RunningCategorical,
    MultiLabel: RunningMultiLabel,
    Gaussian: RunningGaussian,
    HeteroscedasticGaussian: RunningGaussian,
}


def running(likelihood: nn.Module) -> Running:
    """Empty sums for a batch.

    Raises:
        ConfigError: a likelihood without a predictive distribution here.
    """
    for kind, sums in RUNNING.items():
        if isinstance(likelihood, kind):
            return sums(likelihood)
    names = ", ".join(kind.__name__ for kind in RUNNING)
    raise ConfigError(
        f"likelihood {type(likelihood).__name__} has no predictive distribution here; those that have: {names}"
    )


def _joined(parts: Sequence[Any], column: str) -> Any:
    """A column of all parts; none where one of them has none."""
    values = [getattr(part, column) for part in parts]
    return None if any(value is None for value in values) else torch.cat(values)


def _checked(targets: Tensor | None, outputs: Tensor) -> Tensor:
    """Targets beside the outputs of a draw; without any, NaN."""
    if targets is None:
        return torch.full_like(outputs, math.nan)
    if targets.shape != outputs.shape:
        raise ConfigError(f"targets of shape {tuple(targets.shape)} do not fit outputs of shape {tuple(outputs.shape)}")
    return targets.to(outputs.device)


def _precise(outputs: Tensor) -> Tensor:
    """Return outputs in single precision at least."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def _shape(outputs: Tensor) -> str:
    return f"outputs of shape {tuple(outputs.shape)}"
