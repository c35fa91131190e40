"""SWAG: a Gaussian around the average of SGD's iterates at a constant learning rate.

After ``start`` of the run, every ``collect_every`` epochs the weights enter a running mean, a running variance, and the last
``rank`` of them a matrix of deviations from the mean; :mod:`proxscore.posterior.swag` draws from them. Until then the
learning rate is constant for half of the time, and falls linearly to ``swag_lr`` at nine tenths. Maddox et al., A simple
baseline for Bayesian uncertainty in deep learning, arXiv 1902.02476.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from proxscore.config import ConfigError, SWAGConfig
from proxscore.inference import noise
from proxscore.methods.sgd import SGD
from proxscore.methods.steps import Factor
from proxscore.posterior import NameOf, Posterior, SWAGPosterior

if TYPE_CHECKING:
    from proxscore.methods import Horizon

SMALLEST_VARIANCE = 1e-30  # a weight that never moved


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
        named: Iterable[tuple[str, Tensor]],
        factor: Factor,
        max_skipped_steps: int,
        collect_at: list[int],
        rank: int,
        **settings: Any,
    ) -> None:
        trained = [(name, p) for name, p in named if p.requires_grad]
        super().__init__(trained, factor, max_skipped_steps, **settings)
        self.trained = [p for _, p in trained]
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


def build(
    config: SWAGConfig,
    module: nn.Module,
    horizon: Horizon,
    seed: int = 0,
    losses: object = None,
    draw_mesh: object = None,
) -> SWAG:
    """SWAG over the last part of the run.

    Raises:
        ConfigError: the run is too short to collect twice.
    """
    start = round(config.start * horizon.total_steps)
    every = max(round(config.collect_every * horizon.steps_per_epoch), 1)
    collect_at = list(range(horizon.total_steps - 1, start - 1, -every))[::-1]
    if len(collect_at) < 2:
        raise ConfigError(
            f"method.collect_every={config.collect_every:g} epochs leaves {len(collect_at)} collections in the "
            f"{horizon.total_steps - start} steps after method.start={config.start:g}; swag needs two or more"
        )
    end = config.swag_lr / config.lr

    def factor(step: int) -> float:
        progress = step / max(start, 1)
        return 1 - (1 - end) * min(max((progress - 0.5) / 0.4, 0.0), 1.0)

    return SWAG(
        module.named_parameters(),
        factor,
        config.max_skipped_steps,
        collect_at,
        config.rank,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
