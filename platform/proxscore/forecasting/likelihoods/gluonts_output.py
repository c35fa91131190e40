"""Likelihoods as GluonTS's networks know them: how many numbers a step has, and their domain."""

from __future__ import annotations

from typing import Any

import torch
from gluonts.torch.distributions import DistributionOutput, StudentTOutput
from gluonts.torch.distributions.distribution_output import NormalOutput
from torch import Tensor

from proxscore.forecasting.distributions import StepDistribution
from proxscore.forecasting.likelihoods.names import LIKELIHOODS

_OWN: dict[str, type[DistributionOutput]] = {"student_t": StudentTOutput, "normal": NormalOutput}


def output_of(likelihood: str) -> DistributionOutput:
    """What an estimator takes as ``distr_output``: GluonTS's own where it has the family as we do, else ours."""
    return _OWN[likelihood]() if likelihood in _OWN else FamilyOutput(LIKELIHOODS[likelihood]())


class FamilyOutput(DistributionOutput):
    """Parameters of one of our families, of which the last two are about the window's location in units of its scale.

    It has no distribution: that is made where the unit of the target is known, in :mod:`proxscore.forecasting.network`.
    """

    def __init__(self, family: StepDistribution) -> None:
        super().__init__()
        self.family = family
        self.args_dim = dict.fromkeys(family.names, 1)

    def domain_map(self, *args: Tensor) -> tuple[Tensor, ...]:
        """(..., 1) unconstrained numbers to (...) parameters."""
        return tuple(self.family.standard(torch.cat(args, -1)))

    @property
    def event_shape(self) -> tuple[Any, ...]:
        """That of a number."""
        return ()
