"""Variational families: one file each. Those that a configuration or a saved posterior can name are in ``config.components``."""

from proxscore.inference.families.base import ClosedForm, Family, State
from proxscore.inference.families.distribution import Distribution
from proxscore.inference.families.full_covariance import FullCovariance
from proxscore.inference.families.kronecker import Kronecker
from proxscore.inference.families.low_rank import LowRank
from proxscore.inference.families.mean_field import MeanField
from proxscore.inference.families.mixture import Mixture

__all__ = [
    "ClosedForm",
    "Distribution",
    "Family",
    "FullCovariance",
    "Kronecker",
    "LowRank",
    "MeanField",
    "Mixture",
    "State",
]
