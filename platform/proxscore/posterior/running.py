"""Sums over the draws of a posterior for the rows of a batch, of which a predictive distribution is made.

No outputs of past draws are held: memory is that of a few numbers per output of each row, however many draws there are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, MultiLabel
from proxscore.posterior.predictives import CategoricalPredictive, GaussianPredictive, MultiLabelPredictive
from proxscore.posterior.running_moments import RunningMoments


class Running(ABC):
    """Sums over the draws for the rows of one batch.

    Args:
        likelihood: of targets given the network's outputs.
        targets: of the rows, if they have any.
        watched: :meth:`error` will be asked for.
    """

    def __init__(self, likelihood: Any, targets: Tensor | None = None, watched: bool = False) -> None:
        self._likelihood, self._targets, self._watched = likelihood, targets, watched
        self.count = 0

    def add(self, outputs: Tensor) -> None:
        """The network's outputs under the next draw."""
        self._add(outputs if outputs.dtype == torch.float64 else outputs.float())  # in single precision at least
        self.count += 1

    def extend(self, outputs: Tensor) -> None:
        """The network's outputs under the next few draws, stacked along the first dimension."""
        for draw in outputs:
            self.add(draw)

    @abstractmethod
    def _add(self, outputs: Tensor) -> None: ...

    @abstractmethod
    def predictive(self) -> Any:
        """The batch's predictive distribution, on the CPU."""

    @abstractmethod
    def error(self) -> Tensor:
        """(N,), the largest Monte Carlo standard error of a row's outputs, from two draws or more.

        Of probabilities it is that of their mean over the draws. Of numbers it is the larger one of the errors of mean and of
        standard deviation, in units of that standard deviation (of noise and weights together)."""

    @property
    def relative(self) -> bool:
        """Whether the error is in units of a standard deviation."""
        return False

    def _counted(self, rows: int) -> tuple[Tensor, Tensor | None]:
        """The predictive's ``draws`` and ``error``."""
        return torch.full((rows,), self.count), self.error().cpu() if self._watched and self.count > 1 else None


class RunningCategorical(Running):
    """A running log-sum-exp of N x C log-probabilities and N entropies: never S x N x C."""

    def __init__(self, likelihood: Any, targets: Tensor | None = None, watched: bool = False) -> None:
        super().__init__(likelihood, targets, watched)
        self._binary = isinstance(likelihood, Bernoulli)
        self._log_sum, self._entropy_sum, self._moments = torch.empty(0), torch.empty(0), RunningMoments()

    def _add(self, outputs: Tensor) -> None:
        logs = log_probabilities(outputs, binary=self._binary)
        probabilities = logs.exp()
        entropy = -(probabilities * logs).sum(1)
        if self._watched:
            self._moments.add(probabilities)
        if self.count:
            torch.logaddexp(self._log_sum, logs, out=self._log_sum)
            self._entropy_sum += entropy
        else:
            self._log_sum, self._entropy_sum = logs, entropy

    def extend(self, outputs: Tensor) -> None:
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        logs = log_probabilities(outputs.flatten(0, 1), binary=self._binary).unflatten(0, outputs.shape[:2])
        probabilities = logs.exp()
        entropy = -(probabilities * logs).sum((0, 2))
        if self._watched:
            self._moments.extend(probabilities)
        log_sum = logs.logsumexp(0)
        if self.count:
            torch.logaddexp(self._log_sum, log_sum, out=self._log_sum)
            self._entropy_sum += entropy
        else:
            self._log_sum, self._entropy_sum = log_sum, entropy
        self.count += len(outputs)

    def predictive(self) -> CategoricalPredictive:
        log_sum, entropy_sum, targets = self._log_sum.cpu(), self._entropy_sum.cpu(), self._targets
        if targets is not None:
            targets = checked_classes(targets.cpu(), entropy_sum, binary=self._binary)
        columns = (log_sum - math.log(self.count), entropy_sum / self.count, targets)
        return CategoricalPredictive(*columns, *self._counted(len(entropy_sum)))

    def error(self) -> Tensor:
        return self._moments.standard_error.flatten(1).amax(1)


class _WithDensity(Running):
    """The density of all of a row's targets together, 1/S sum_s p(y | x, draw s), which is no function of each output's."""

    def __init__(self, likelihood: Any, targets: Tensor | None = None, watched: bool = False) -> None:
        super().__init__(likelihood, targets, watched)
        self._log_density = torch.empty(0)

    def _add_density(self, outputs: Tensor, like: Tensor) -> None:
        """The outputs of a draw, and what targets are shaped as."""
        if not self.count:
            self._targets = self._checked(like)
        each = -self._likelihood.nll(outputs, self._targets).double()
        self._log_density = torch.logaddexp(self._log_density, each) if self.count else each

    def _checked(self, like: Tensor) -> Tensor:
        """Targets beside the outputs of a draw; without any, NaN."""
        if self._targets is None:
            return torch.full_like(like, math.nan)
        if self._targets.shape != like.shape:
            raise ConfigError(
                f"targets of shape {tuple(self._targets.shape)} do not fit outputs of shape {tuple(like.shape)}"
            )
        return self._targets.to(like.device)

    def _density(self, like: Tensor) -> Tensor:
        """(N,), of the type of ``like``."""
        return (self._log_density - math.log(self.count)).to(like).cpu()


class RunningMultiLabel(_WithDensity):
    """Probabilities of labels, and the density of all labels of a row together."""

    def __init__(self, likelihood: Any, targets: Tensor | None = None, watched: bool = False) -> None:
        super().__init__(likelihood, targets, watched)
        self._moments, self._entropy_sum = RunningMoments(), torch.empty(0)

    def _add(self, outputs: Tensor) -> None:
        self._add_density(outputs, outputs)
        p = outputs.sigmoid()
        entropy = nn.functional.binary_cross_entropy_with_logits(outputs, p, reduction="none").sum(1)
        self._entropy_sum = self._entropy_sum + entropy if self.count else entropy
        self._moments.add(p)

    def predictive(self) -> MultiLabelPredictive:
        assert self._targets is not None
        mean, entropy = self._moments.mean, (self._entropy_sum / self.count).cpu()
        return MultiLabelPredictive(
            mean.cpu(), entropy, self._density(mean), self._targets.cpu(), *self._counted(len(entropy))
        )

    def error(self) -> Tensor:
        return self._moments.standard_error.flatten(1).amax(1)


class RunningGaussian(_WithDensity):
    """Means, and the variances of noise and draws."""

    def __init__(self, likelihood: Any, targets: Tensor | None = None, watched: bool = False) -> None:
        super().__init__(likelihood, targets, watched)
        self._means, self._noises = RunningMoments(4 if watched else 2), RunningMoments()

    def _add(self, outputs: Tensor) -> None:
        mean, noise = self._of_a_draw(outputs)
        self._add_density(outputs, mean)
        self._means.add(mean)
        self._noises.add(noise)

    def predictive(self) -> GaussianPredictive:
        assert self._targets is not None
        mean = self._means.mean
        columns: list[Any] = [mean, self._noises.mean, self._means.variance, self._density(mean), self._targets]
        columns = [column.cpu() for column in columns]
        return GaussianPredictive(*[*columns, *self._counted(len(mean))])

    @property
    def relative(self) -> bool:
        return True

    def error(self) -> Tensor:
        """The total variance is the mean over draws of noise plus squared deviation, whose variances are known; as how both
        go together is not, their standard deviations are added: the error is at most that."""
        variance = self._noises.mean + self._means.variance
        of_mean = self._means.standard_error / variance.sqrt()
        spread = self._noises.variance.sqrt() + self._means.variance_of_squares.sqrt()
        of_sd = spread / math.sqrt(self.count - 1) / (2 * variance)
        return torch.maximum(of_mean, of_sd).reshape(len(variance), -1).amax(1)

    def _of_a_draw(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
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


def running(likelihood: nn.Module, targets: Tensor | None = None, watched: bool = False) -> Running:
    """Empty sums for a batch; arguments as of :class:`Running`.

    Raises:
        ConfigError: a likelihood without a predictive distribution here.
    """
    for kind, sums in RUNNING.items():
        if isinstance(likelihood, kind):
            return sums(likelihood, targets, watched)
    names = ", ".join(kind.__name__ for kind in RUNNING)
    raise ConfigError(
        f"likelihood {type(likelihood).__name__} has no predictive distribution here; those that have: {names}"
    )


def log_probabilities(outputs: Tensor, *, binary: bool) -> Tensor:
    """(N, C), or (N, C, ...), of the logits of classes, or of the one logit of two.

    Raises:
        ConfigError: outputs that are no such logits.
    """
    if binary:
        return nn.functional.logsigmoid(torch.stack([-one_logit(outputs), one_logit(outputs)], 1))
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise ConfigError(
            f"the network returns {_shape(outputs)}: one output per row is no distribution over classes; pass "
            "likelihood=Bernoulli() for the logit of two classes, or the Gaussian() of a regression"
        )
    return outputs.log_softmax(1)


def one_logit(outputs: Tensor) -> Tensor:
    """(N,) of (N,) or (N, 1).

    Raises:
        ConfigError: outputs of another shape.
    """
    if outputs.ndim == 2 and outputs.shape[1] == 1:
        outputs = outputs[:, 0]
    if outputs.ndim != 1:
        raise ConfigError(f"a Bernoulli likelihood needs one logit per row; the network returns {_shape(outputs)}")
    return outputs


def checked_classes(targets: Tensor, like: Tensor, *, binary: bool) -> Tensor:
    """Classes of the rows, shaped as ``like``.

    Raises:
        ConfigError: they are of another shape.
    """
    if binary and targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.shape != like.shape:
        raise ConfigError(f"targets of shape {tuple(targets.shape)} do not fit predictions for {tuple(like.shape)}")
    return targets


def _shape(outputs: Tensor) -> str:
    return f"outputs of shape {tuple(outputs.shape)}"
