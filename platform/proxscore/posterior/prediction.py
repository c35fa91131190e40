"""Prediction: the average over posterior draws, in one pass over the data."""

from __future__ import annotations

from typing import overload

import torch
from torch import nn

from proxscore.config import ConfigError
from proxscore.inference.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, MultiLabel
from proxscore.posterior.calls import Batches, batches_of, outputs_of, to_device
from proxscore.posterior.drawn import drawn
from proxscore.posterior.posterior import Posterior
from proxscore.posterior.predictives import CategoricalPredictive, GaussianPredictive, MultiLabelPredictive, running


@overload
def predict(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior | None = None,
    *,
    likelihood: Categorical | Bernoulli | None = None,
    draws: int = 16,
    seed: int = 0,
    refresh: Batches | None = None,
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
    refresh: Batches | None = None,
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
    refresh: Batches | None = None,
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
    refresh: Batches | None = None,
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
            named ones) and targets. If there are fewer targets than inputs, the inputs beyond are padding (so that all ranks
            of a sharded module run equally many forwards).
        posterior: where the draws come from.
        likelihood: categorical by default, over at least two logits; a ``Bernoulli`` over one; a ``Gaussian`` gives a
            :class:`GaussianPredictive`, ``MultiLabel`` a :class:`MultiLabelPredictive`.
        draws: S; a set of samples gives at most those that it holds, evenly spaced.
        seed: of the draws: equal seeds give equal draws.
        refresh: batches to estimate the running statistics of BatchNorm layers from, anew for every draw (so a function
            that gives a new pass over them, or a list); without, they stay what training left.
        autocast: compute dtype of the forward passes.

    Raises:
        ConfigError: outputs that the likelihood cannot have (one number for a categorical distribution, say), outputs that
            are no tensor, batches that are no pairs, or none at all.
    """
    likelihood = likelihood or Categorical()
    parts = []
    with drawn(module, posterior, draws, seed, refresh, autocast) as found:
        for inputs, targets in batches_of(batches):
            inputs, sums = to_device(inputs, found.device), running(likelihood)
            for position in range(len(found)):
                with found.use(position):
                    sums.add(outputs_of(module, inputs)[: len(targets)])
            parts.append(sums.predictive(targets))
    if not parts:
        raise ConfigError("batches gave no rows: an iterator that was read before, or an empty loader")
    return type(parts[0]).joined(parts)
