"""Prediction: the average over posterior draws, in one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from proxscore.config import ConfigError
from proxscore.inference.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, MultiLabel
from proxscore.posterior.calls import Batches, batches_of, rows_of, to_device
from proxscore.posterior.draw_statistics import DrawStatistics
from proxscore.posterior.drawn import drawn
from proxscore.posterior.posterior import Posterior
from proxscore.posterior.predictives import CategoricalPredictive, GaussianPredictive, MultiLabelPredictive
from proxscore.posterior.running import Running, running
from proxscore.posterior.settled import DrawCount, UntilSettled, until_settled
from proxscore.posterior.shards import is_sharded
from proxscore.posterior.stacked import StackedDraws

#: Of inputs and sums of the batches that go through the network under one draw before the next one's turn.
GROUP_BYTES = 2**27
GROUP_BATCHES = 16


class Draws(Protocol):
    """Draws of a posterior that are ready in a network."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    def __len__(self) -> int: ...

    def together(self, inputs: Any, positions: range) -> Tensor | None:
        """(S, rows, ...): the outputs for a batch under the draws of these positions, where one pass gives them faster."""

    def passes(self, group: Sequence[Any], positions: range) -> Iterator[tuple[int, Tensor]]:
        """The network's outputs for some batches on the device, with the batch's place among them, under the draws of these
        positions: of each batch under one draw after another."""


@overload
def predict(
    module: nn.Module,
    batches: Batches,
    posterior: Posterior | None = None,
    *,
    likelihood: Categorical | Bernoulli | None = None,
    draws: DrawCount = 16,
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
    draws: DrawCount = 16,
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
    draws: DrawCount = 16,
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
    draws: DrawCount = 16,
    seed: int = 0,
    refresh: Batches | DrawStatistics | None = None,
    autocast: torch.dtype | None = None,
) -> CategoricalPredictive | GaussianPredictive | MultiLabelPredictive:
    """The predictive distribution for all rows of a data set.

    Each batch is read once and goes through the network under each of S fixed draws, the same for all batches: a shuffled
    loader and an iterator that can be read only once serve as well as any. Of past draws only sums are held. With ``draws=0``,
    or without a posterior, it is the prediction of the mean weights (or of the weights as they are).

    Args:
        module: the network; its training mode, weights and buffers are as before afterwards. It returns a tensor, or has
            ``logits`` in what it returns.
        batches: a loader, or a function that gives one: pairs of inputs (a tensor, a tuple of arguments, or a dictionary of
            named ones) and targets, or inputs alone, whose predictions have no ``log_density``. If there are fewer targets
            than inputs, the inputs beyond are padding (so that all ranks of a sharded module run equally many forwards).
        posterior: where the draws come from.
        likelihood: categorical by default, over at least two logits; a ``Bernoulli`` over one; a ``Gaussian`` gives a
            :class:`GaussianPredictive`, ``MultiLabel`` a :class:`MultiLabelPredictive`.
        draws: S; a set of samples gives at most those that it holds, evenly spaced. ``"auto"``, or an
            :class:`~proxscore.posterior.settled.UntilSettled`: for each batch as many as it takes until its prediction has
            settled; the predictive's ``draws`` has the number for each row.
        seed: of the draws: equal seeds give equal draws.
        refresh: batches to estimate the running statistics of BatchNorm layers from, anew for every draw (so a function
            that gives a new pass over them, or a list), or the statistics that were kept; without, they stay what training
            left.
        autocast: compute dtype of the forward passes.

    Raises:
        ConfigError: outputs that the likelihood cannot have (one number for a categorical distribution, say), outputs that
            are no tensor, batches that are no pairs, or none at all.
    """
    rule = until_settled(draws)
    most = rule.most if rule is not None else draws
    together = is_sharded(module.parameters()) or (
        refresh is not None
        and not isinstance(refresh, DrawStatistics)
        and dist.is_initialized()
        and dist.get_world_size() > 1
    )  # BatchNorm's statistics under a draw are averaged over ranks
    if rule is not None and together:
        raise ConfigError("draws=auto: ranks that share a network must run equally many passes: give a number of draws")
    assert isinstance(most, int)
    with drawn(module, posterior, most, seed, refresh, autocast, lazily=rule is not None) as found:
        return predicted(StackedDraws(found), batches, likelihood or Categorical(), rule)


@torch.no_grad()
def predicted(found: Draws, batches: Batches, likelihood: nn.Module, rule: UntilSettled | None = None) -> Any:
    """The predictive distribution for all rows by draws that are ready; see :func:`predict`.

    Args:
        rule: after how many of the draws to stop; none: all are taken.
    """
    parts = []
    for group in _groups(found, batches_of(batches), likelihood, watched=rule is not None):
        left, rounds = group, [range(len(found))] if rule is None or len(found) < 2 else rule.rounds(len(found))
        for positions in rounds:
            turns = []
            for batch in left:
                together = found.together(batch.inputs, positions)
                if together is None:
                    turns.append(batch)
                else:
                    batch.extend(together)
            if turns:
                for place, outputs in found.passes([batch.inputs for batch in turns], positions):
                    turns[place].add(outputs)
            if rule is not None and len(found) > 1:
                left = [batch for batch in left if not rule.settled(batch.sums)]
            if not left:
                break
        parts += [batch.sums.predictive() for batch in group]
    if not parts:
        raise ConfigError("batches gave no rows: an iterator that was read before, or an empty loader")
    return type(parts[0]).joined(parts)


@dataclass
class _Batch:
    """Inputs of a batch on the device, the rows of it that count, and their sums."""

    inputs: Any
    rows: int
    sums: Running
    held: int = 0

    def add(self, outputs: Tensor) -> None:
        """The network's outputs under the next draw, of padding, too."""
        self.held = outputs.nbytes
        self.sums.add(outputs[: self.rows])

    def extend(self, outputs: Tensor) -> None:
        """The network's outputs under several draws."""
        self.held = outputs[0].nbytes
        self.sums.extend(outputs[:, : self.rows])


def _groups(
    found: Draws, pairs: Iterable[tuple[Any, Tensor | None]], likelihood: nn.Module, watched: bool
) -> Iterator[list[_Batch]]:
    """Batches that take turns with each draw: the first one alone, which tells how large outputs are, then some together."""
    group: list[_Batch] = []
    held = size = 0
    for inputs, targets in pairs:
        rows = rows_of(inputs) if targets is None else len(targets)
        own = to_device(inputs, found.device)
        if size:  # it waits while the next one is read: a loader may write that into the same memory
            own = tree_map(lambda a, b: a.clone() if a is b and isinstance(a, Tensor) else a, own, inputs)
        kept = None if targets is None else targets.clone()  # until all rows are joined
        group.append(_Batch(own, rows, running(likelihood, kept, watched)))
        held += sum(leaf.nbytes for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)) + size
        if not size or held > GROUP_BYTES or len(group) == GROUP_BATCHES:
            yield group
            size = size or 4 * group[0].held  # as many sums as that, in single precision, of each output
            group, held = [], 0
    if group:
        yield group
