"""SWAG: a Gaussian around the average of SGD's iterates at a constant learning rate.

After ``start`` of the run, every ``collect_every`` epochs the weights enter a running mean, a running variance, and the last
``rank`` of them a matrix of deviations from the mean; :mod:`proxscore.posterior.swag` draws from them. Until then the
learning rate is constant for half of the time, and falls linearly to ``swag_lr`` at nine tenths. Maddox et al., A simple
baseline for Bayesian uncertainty in deep learning, arXiv 1902.02476.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field

from proxscore.config import ConfigError
from proxscore.inference import noise
from proxscore.methods.method import Setup
from proxscore.methods.rates import LayerwiseRates
from proxscore.methods.sgd import SGD
from proxscore.methods.steps import Factor
from proxscore.posterior import NameOf, Posterior, SWAGPosterior

SMALLEST_VARIANCE = 1e-30  # a weight that never moved


class SWAGConfig(LayerwiseRates):
    """SGD whose late iterates make a Gaussian, with its authors' settings."""

    kind: Literal["swag"] = "swag"
    lr: float = Field(0.05, gt=0)  # learning rate before weights are collected
    swag_lr: float = Field(0.01, gt=0)  # constant while weights are collected
    start: float = Field(0.75, ge=0, lt=1)  # fraction of the run before
    collect_every: float = Field(1, gt=0)  # epochs
    rank: int = Field(20, ge=2, le=10_000)  # deviations kept, each a copy of the weights; of one there is no variance
    momentum: float = Field(0.9, ge=0, lt=1)  # of the gradient, over steps
    weight_decay: float = Field(5e-4, ge=0)  # prior precision divided by the training rows
    # Steps in a row with gradients that are not finite, after which the run ends as diverged.
    max_skipped_steps: int = Field(10, ge=1)

    def build(self, setup: Setup) -> SWAG:
        """SWAG over the last part of the run.

        Raises:
            ConfigError: the run is too short to collect twice.
        """
        start = round(self.start * setup.run.total_steps)
        every = max(round(self.collect_every * setup.run.steps_per_epoch), 1)
        collect_at = list(range(setup.run.total_steps - 1, start - 1, -every))[::-1]
        if len(collect_at) < 2:
            raise ConfigError(
                f"method.collect_every={self.collect_every:g} epochs leaves {len(collect_at)} collections in the "
                f"{setup.run.total_steps - start} steps after method.start={self.start:g}; swag needs two or more"
            )
        end = self.swag_lr / self.lr

        def factor(step: int) -> float:
            progress = step / max(start, 1)
            return 1 - (1 - end) * min(max((progress - 0.5) / 0.4, 0.0), 1.0)

        return SWAG(
            self.rated(setup.module, self.lr),
            factor,
            self.max_skipped_steps,
            collect_at,
            self.rank,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


class SWAG(SGD):
    """SGD with the moments of its late iterates.

    State per parameter beside SGD's, with its sharding: ``average``, ``squares`` (sum of squared deviations), and
    ``deviation_0`` to ``deviation_<rank - 1>``: with weights and gradient 5 P + rank P numbers.

    Args:
        collect_at: the steps after which the weights are collected.
        rank: columns of deviations.
    """

    def __init__(
        self,
        named: Iterable[Any],
        factor: Factor,
        max_skipped_steps: int,
        collect_at: list[int],
        rank: int,
        **settings: Any,
    ) -> None:
        super().__init__(named, factor, max_skipped_steps, **settings)
        self.trained = self.parameters()
        self.collect_at, self.rank = collect_at, min(rank, len(collect_at))
        for p in self.trained:
            for key in ("average", "squares", *(f"deviation_{k}" for k in range(self.rank))):
                self.state[p][key] = torch.zeros_like(p)

    def _collected(self) -> int:
        """How often the weights were collected."""
        return sum(step < self.param_groups[0]["iteration"] for step in self.collect_at)

    def collect(self) -> None:
        """Take the weights into the moments if it is time to."""
        if self.param_groups[0]["iteration"] - 1 in self.collect_at:
            count = self._collected()
            for p in self.trained:
                state, weights = self.state[p], noise.local(p)
                average, squares = noise.local(state["average"]), noise.local(state["squares"])
                column = noise.local(state[f"deviation_{(count - 1) % self.rank}"])
                offset = weights - average  # Welford's: exact where E x^2 - (E x)^2 would cancel
                average.add_(offset, alpha=1 / count)
                torch.sub(weights, average, out=column)
                squares.addcmul_(offset, column)

    def posterior_from(self, point: Posterior, name_of: NameOf) -> Posterior:
        """The Gaussian; before two collections, the weights as they are."""
        count = self._collected()
        if count < 2:
            return point
        held = {name_of(p): self.state[p] for p in self.trained}
        return SWAGPosterior(
            point.mean | {name: state["average"] for name, state in held.items()},
            {name: 2 / (state["squares"] / count).clamp_min(SMALLEST_VARIANCE) for name, state in held.items()},
            point.buffers,
            point.description,
            extra_state=point.extra_state,
            deviations=[
                {name: state[f"deviation_{k}"] for name, state in held.items()} for k in range(min(count, self.rank))
            ],
        )
