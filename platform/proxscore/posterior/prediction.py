"""Prediction: the average over posterior draws, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, MultiLabel
from proxscore.posterior.calls import Batches, batches_of, rows_of, to_device
from proxscore.posterior.draw_statistics import DrawStatistics
from proxscore.posterior.drawn import drawn
from proxscore.posterior.posterior import Posterior
from proxscore.posterior.predictives import CategoricalPredictive, GaussianPredictive, MultiLabelPredictive, running


class Draws(Protocol):
    """Draws of a posterior that are ready in a network."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    def outputs(self, inputs: Any) -> Iterator[Tensor]:
        """The network's outputs for a batch, under one draw after another."""


@overload
def predict(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior | None = None,
    *,
    likelihood: Categorical | Bernoulli | None = None,
    draws: int = 16,
    seed: int = 0,
    refresh: Batches | DrawStatistics | None = None,
    autocast: torch.dtype | None = None,
) -> CategoricalPredictive: ...


@overload
def predict(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior | None = None,
    *,
    likelihood: Gaussian | HeteroscedasticGaussian,
    draws: int = 16,
    seed: int = 0,
    refresh: Batches | DrawStatistics | None = None,
    autocast: torch.dtype | None = None,
) -> GaussianPredictive: ...


@overload
def predict(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior | None = None,
    *,
    likelihood: MultiLabel,
    draws: int = 16,
    seed: int = 0,
    refresh: Batches | DrawStatistics | None = None,
    autocast: torch.dtype | None = None,
) -> MultiLabelPredictive: ...


@torch.no_grad()
def predict(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior | None = None,
    *,
    likelihood: nn.Module | None = None,
    draws: int = 16,
    seed: int = 0,
    refresh: Batches | DrawStatistics | None = None,
    autocast: torch.dtype | None = None,
) -> CategoricalPredictive | GaussianPredictive | MultiLabelPredictive:
    """The predictive distribution for all rows of a data set.

    Each batch is read once and goes through the network under each of S fixed draws, the same for all batches: a shuffled
    loader and an iterator that can be read only once serve as well as any. With ``draws=0``, or without a posterior, it is
    the prediction of the mean weights (or of the weights as they are).

    Args:
        module: the network; its training mode, weights and buffers are as before afterwards. It returns a tensor, or has
            ``logits`` in what it returns.
        batches: a loader, or a function that gives one: pairs of inputs (a tensor, a tuple of arguments, or a dictionary of
            named ones) and targets, or inputs alone, whose predictions have no ``log_density``. If there are fewer targets
            than inputs, the inputs beyond are padding (so that all ranks of a sharded module run equally many forwards).
        posterior: where the draws come from.
        likelihood: categorical by default, over at least two logits; a ``Bernoulli`` over one; a ``Gaussian`` gives a
            :class:`GaussianPredictive`, ``MultiLabel`` a :class:`MultiLabelPredictive`.
        draws: S; a set of samples gives at most those that it holds, evenly spaced.
        seed: of the draws: equal seeds give equal draws.
        refresh: batches to estimate the running statistics of BatchNorm layers from, anew for every draw (so a function
            that gives a new pass over them, or a list), or the statistics that were kept; without, they stay what training
            left.
        autocast: compute dtype of the forward passes.

    Raises:
        ConfigError: outputs that the likelihood cannot have (one number for a categorical distribution, say), outputs that
            are no tensor, batches that are no pairs, or none at all.
    """
    with drawn(module, posterior, draws, seed, refresh, autocast) as found:
        return predicted(found, batches, likelihood or Categorical())


def predicted(found: Draws, batches: Batches, likelihood: nn.Module) -> Any:
    """The predictive distribution for all rows by draws that are ready; see :func:`predict`."""
    parts = []
    for inputs, targets in batches_of(batches):
        inputs, sums = to_device(inputs, found.device), running(likelihood)
        rows = rows_of(inputs) if targets is None else len(targets)
        for outputs in found.outputs(inputs):
            sums.add(outputs[:rows])
        parts.append(sums.predictive(targets))
    if not parts:
        raise ConfigError("batches gave no rows: an iterator that was read before, or an empty loader")
    return type(parts[0]).joined(parts)
