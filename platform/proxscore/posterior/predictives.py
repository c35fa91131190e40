"""Predictive distributions of a data set's rows, by likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from proxscore.config import ConfigError


@dataclass
class CategoricalPredictive:
    """p(y | x) = 1/S sum_s softmax(f(x; theta_s)) for the rows of a data set, on the CPU.

    A Bernoulli likelihood gives two classes: C = 2, of which class 1 has probability sigmoid(f).

    Attributes:
        log_probabilities: (N, C) or (N, C, ...), natural logarithm of the predictive probabilities.
        expected_entropy: (N,) or (N, ...), mean over draws of the entropy of softmax(f), in nats.
        targets: (N,) or (N, ...), as the data gave them; none, where they gave none.
        draws: (N,), how many were averaged for each row; none: nobody counted.
        error: (N,), Monte Carlo standard error of each row, see :mod:`proxscore.posterior.settled`; none: nobody asked.
    """

    log_probabilities: Tensor
    expected_entropy: Tensor
    targets: Any
    draws: Tensor | None = None
    error: Tensor | None = None

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
        return cls(
            *(
                _joined(parts, column)
                for column in ("log_probabilities", "expected_entropy", "targets", "draws", "error")
            )
        )


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
        draws: (N,), how many were averaged for each row; none: nobody counted.
        error: (N,), Monte Carlo standard error of each row, see :mod:`proxscore.posterior.settled`; none: nobody asked.
    """

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    log_density: Tensor
    targets: Tensor
    draws: Tensor | None = None
    error: Tensor | None = None

    @property
    def sd(self) -> Tensor:
        """Standard deviation of the predictive distribution: of noise and weights together."""
        return (self.aleatoric + self.epistemic).sqrt()

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after another."""
        columns = ("mean", "aleatoric", "epistemic", "log_density", "targets", "draws", "error")
        return cls(*(_joined(parts, column) for column in columns))


@dataclass
class MultiLabelPredictive:
    """p(y_c = 1 | x) = 1/S sum_s sigmoid(f_c(x; theta_s)) of C labels for the rows of a data set, on the CPU.

    Attributes:
        probabilities: (N, C), of each label by itself.
        expected_entropy: (N,), mean over draws of the entropy of all labels together, in nats.
        log_density: (N,), log 1/S sum_s prod_c p(y_c | x, theta_s) of all labels of a row together, in nats.
        targets: (N, C), zeros and ones.
        draws: (N,), how many were averaged for each row; none: nobody counted.
        error: (N,), Monte Carlo standard error of each row, see :mod:`proxscore.posterior.settled`; none: nobody asked.
    """

    probabilities: Tensor
    expected_entropy: Tensor
    log_density: Tensor
    targets: Tensor
    draws: Tensor | None = None
    error: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The probabilities."""
        return self.probabilities

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after another."""
        columns = ("probabilities", "expected_entropy", "log_density", "targets", "draws", "error")
        return cls(*(_joined(parts, column) for column in columns))


def _joined(parts: Sequence[Any], column: str) -> Any:
    """A column of all parts; none where one of them has none."""
    values = [getattr(part, column) for part in parts]
    return None if any(value is None for value in values) else torch.cat(values)
