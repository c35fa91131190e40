"""Monte Carlo dropout: a point estimate of a network with dropout, whose masks go on being drawn in prediction.

Training is that of another method (``of``); what it leaves is :class:`proxscore.posterior.DropoutPosterior`. Gal and
Ghahramani, Dropout as a Bayesian approximation, arXiv 1506.02142.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from proxscore.config import POINT_METHODS, ConfigError, MethodSection
from proxscore.methods.method import Setup
from proxscore.posterior import DropoutPosterior, NameOf, Posterior
from proxscore.posterior.dropout import dropout_layers


class MCDropoutConfig(MethodSection):
    """Monte Carlo dropout, of a network with dropout layers."""

    kind: Literal["mc_dropout"] = "mc_dropout"
    of: Annotated[MethodSection, POINT_METHODS] = Field(
        default_factory=POINT_METHODS.make
    )  # how the weights are trained

    fixed_weights: ClassVar[bool] = True

    def remedy(self, section: str) -> str:
        return self.of.remedy(f"{section}.of")

    def build(self, setup: Setup) -> Any:
        """The optimizer of ``of``, which leaves a posterior over dropout masks.

        Raises:
            ConfigError: the network has no dropout layer with a positive rate.
        """
        if not dropout_layers(setup.module):
            raise ConfigError(
                "method.kind=mc_dropout: the network has no dropout layer with a positive rate; set one, for example "
                "task.model.kwargs={drop_rate: 0.1}"
            )
        method = self.of.build(setup)
        method.posterior_from = _with_masks
        return method


def _with_masks(point: Posterior, _: NameOf) -> DropoutPosterior:
    return DropoutPosterior(**{field.name: getattr(point, field.name) for field in fields(Posterior) if field.init})
