"""Predictions batch by batch: each batch is read once, goes through the network under every draw, and is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxscore.inference import Bernoulli
from proxscore.posterior import CategoricalPredictive, Posterior
from proxscore.posterior.calls import outputs_of, to_device
from proxscore.posterior.drawn import Drawn, drawn
from proxscore.posterior.running import running
from proxscore.training.data.batches import evaluation_batches
from proxscore.training.evaluation import batch_norm_batches
from proxscore.training.run import Run
from proxscore.vision.corruptions import NumberedImages


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that share the rows: its rank, and their number."""

    rank: int = 0
    world: int = 1


@dataclass
class Scored:
    """Predictions for the rows of one batch (B,), on the CPU.

    Attributes:
        predictive: log-probabilities (B, C), averaged over draws; expected entropy; labels.
        rows: numbers in their data set.
        energy: mean over draws of -log sum_c exp f_c(x), in nats.
        draw_nll: mean over draws of -log p(label) under a single draw.
    """

    predictive: CategoricalPredictive
    rows: Tensor
    energy: Tensor
    draw_nll: Tensor


class Predictor:
    """A network and draws that are ready, for any number of data sets.

    Args:
        run: network, task and settings of evaluation.
        found: the draws.
        place: of this process.
    """

    def __init__(self, run: Run, found: Drawn, place: Place) -> None:
        self.run, self.found, self.place = run, found, place
        self._binary = isinstance(run.task.likelihood, Bernoulli)

    @property
    def draws(self) -> int:
        """How many there are; one for a point estimate or the mean weights."""
        return len(self.found)

    def scored(self, images: NumberedImages) -> Iterator[Scored]:
        """This process's rows of a data set. Every process yields equally many batches, some perhaps empty."""
        for inputs, numbered in self.read(images):
            yield self.score(inputs, numbered)

    def read(self, images: NumberedImages) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of this process's rows, for :meth:`score`."""
        size = self.run.config.evaluation.batch_size
        return evaluation_batches(images, size, self.place.rank, self.place.world)

    @torch.no_grad()
    def score(self, inputs: Tensor, numbered: Tensor) -> Scored:
        """Predictions for a batch; ``numbered`` (B, 2) has labels and row numbers."""
        targets, rows = numbered.unbind(1)
        inputs, sums = to_device(inputs, self.found.device), running(self.run.task.likelihood, targets)
        energy, nll = torch.zeros(len(targets), dtype=torch.float64), torch.zeros(len(targets), dtype=torch.float64)
        for position in range(len(self.found)):
            with self.found.use(position) as module:
                outputs = outputs_of(module, inputs)[: len(targets)]
            sums.add(outputs)
            logits = logits_of(outputs, binary=self._binary)
            energy -= logits.logsumexp(1).double().cpu()
            nll -= logits.log_softmax(1).cpu().gather(1, targets.unsqueeze(1)).squeeze(1).double()
        return Scored(sums.predictive(), rows, energy / len(self.found), nll / len(self.found))


def logits_of(outputs: Tensor, *, binary: bool) -> Tensor:
    """Outputs as (B, C) in single precision; of one logit f for two classes -f/2 and f/2, which treat both alike."""
    outputs = outputs.float()
    if not binary:
        return outputs
    half = outputs.flatten() / 2
    return torch.stack([-half, half], 1)


def predictor_draws(run: Run, posterior: Posterior, draws: int) -> AbstractContextManager[Drawn]:
    """Within the context, the draws are in reach of the run's network; BatchNorm's statistics are set once for each."""
    settings = run.config.evaluation
    norm = batch_norm_batches(run)
    refresh: Any = None if norm is None else lambda: norm
    return drawn(run.module, posterior, draws, settings.seed, refresh, run.autocast)


def has_draws(posterior: Posterior, draws: int) -> bool:
    """Whether predictions are averages over draws that differ: mutual information is then defined."""
    return bool(draws) and posterior.random and len(list(posterior.indices(draws))) > 1
