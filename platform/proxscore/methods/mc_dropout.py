"""Monte Carlo dropout: a point estimate of a network with dropout, whose masks go on being drawn in prediction.

Training is that of another method (``of``); what it leaves is :class:`proxscore.posterior.DropoutPosterior`. Gal and
Ghahramani, Dropout as a Bayesian approximation, arXiv 1506.02142.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import nn

from proxscore.config import ConfigError, MCDropoutConfig
from proxscore.posterior import DropoutPosterior, NameOf, Posterior
from proxscore.posterior.dropout import dropout_layers

if TYPE_CHECKING:
    from proxscore.methods import Horizon


def build(
    config: MCDropoutConfig,
    module: nn.Module,
    horizon: Horizon,
    seed: int = 0,
    losses: Any = None,
    draw_mesh: Any = None,
) -> Any:
    """The optimizer of ``of``, which leaves a posterior over dropout masks.

    Raises:
        ConfigError: the network has no dropout layer with a positive rate.
    """
    from proxscore.methods import build_method

    if not dropout_layers(module):
        raise ConfigError(
            "method.kind=mc_dropout: the network has no dropout layer with a positive rate; set one, for example "
            "task.model.kwargs={drop_rate: 0.1}"
        )
    method: Any = build_method(config.of, module, horizon, seed, losses, draw_mesh)
    method.posterior_from = _with_masks
    return method


def _with_masks(point: Posterior, _: NameOf) -> DropoutPosterior:
    return DropoutPosterior(**{field.name: getattr(point, field.name) for field in fields(Posterior) if field.init})
