"""SGD with momentum: the maximum a posteriori under a Gaussian prior.

    v <- momentum v + grad mean NLL + weight_decay theta,      theta <- theta - lr v

Its fixed point is that of N (mean NLL) + N weight_decay |theta|^2 / 2: the mode under the prior N(0, 1 / (N weight_decay)).
The defaults are those of residual networks on CIFAR (He et al., arXiv 1512.03385; Zagoruyko and Komodakis, 1605.07146).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from proxscore.config import SGDConfig
from proxscore.methods.steps import Factor, Steps, cosine

if TYPE_CHECKING:
    from proxscore.methods import Horizon


class SGD(Steps, torch.optim.SGD):
    """torch's SGD with the loop's interface; its momentum exists from the start, so that it can be counted and loaded.

    Args:
        named: (name, parameter) pairs.
        factor: on the learning rate, of a step.
        settings: of ``torch.optim.SGD``.
    """

    def __init__(
        self, named: Iterable[tuple[str, Tensor]], factor: Factor, max_skipped_steps: int = 10, **settings: Any
    ) -> None:
        super().__init__(named, **settings)
        self.prepare(factor, max_skipped_steps)
        if settings.get("momentum", 0):
            for parameter in self.parameters():
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def build(
    config: SGDConfig,
    module: nn.Module,
    horizon: Horizon,
    seed: int = 0,
    losses: object = None,
    draw_mesh: object = None,
) -> SGD:
    """SGD with warm-up and cosine decay to zero over the run."""
    return SGD(
        module.named_parameters(),
        cosine(config.warmup, horizon.total_steps),
        config.max_skipped_steps,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
