"""SGD with momentum: the maximum a posteriori under a Gaussian prior.

    v <- momentum v + grad mean NLL + weight_decay theta,      theta <- theta - lr v

Its fixed point is that of N (mean NLL) + N weight_decay |theta|^2 / 2: the mode under the prior N(0, 1 / (N weight_decay)).
The defaults are those of residual networks on CIFAR (He et al., arXiv 1512.03385; Zagoruyko and Komodakis, 1605.07146).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from proxscore.methods.method import Setup
from proxscore.methods.rates import LayerwiseRates
from proxscore.methods.steps import Factor, Steps, cosine


class SGDConfig(LayerwiseRates):
    """Point estimate (maximum a posteriori) by SGD with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)  # learning rate after the warm-up
    momentum: float = Field(0.9, ge=0, lt=1)  # of the gradient, over steps
    nesterov: bool = False  # look ahead along the momentum
    weight_decay: float = Field(5e-4, ge=0)  # prior precision divided by the training rows
    warmup: float = Field(0.05, ge=0, lt=1)  # fraction of the run
    # Steps in a row with gradients that are not finite, after which the run ends as diverged.
    max_skipped_steps: int = Field(10, ge=1)

    fixed_weights: ClassVar[bool] = True

    def build(self, setup: Setup) -> SGD:
        """SGD with warm-up and cosine decay to zero over the run."""
        return SGD(
            self.rated(setup.module, self.lr),
            cosine(self.warmup, setup.run.total_steps),
            self.max_skipped_steps,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


class SGD(Steps, torch.optim.SGD):
    """torch's SGD with the loop's interface; its momentum exists from the start, so that it can be counted and loaded.

    Args:
        named: (name, parameter) pairs.
        factor: on the learning rate, of a step.
        settings: of ``torch.optim.SGD``.
    """

    def __init__(self, named: Iterable[Any], factor: Factor, max_skipped_steps: int = 10, **settings: Any) -> None:
        super().__init__(named, **settings)
        self.prepare(factor, max_skipped_steps)
        if settings.get("momentum", 0):
            for parameter in self.parameters():
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
