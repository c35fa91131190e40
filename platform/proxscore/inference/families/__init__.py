"""Variational families, by the kind that a configuration or a saved posterior names."""

from proxscore.inference.families.base import ClosedForm, Family, State
from proxscore.inference.families.distribution import Distribution
from proxscore.inference.families.full_covariance import FullCovariance
from proxscore.inference.families.kronecker import Kronecker
from proxscore.inference.families.low_rank import LowRank
from proxscore.inference.families.mean_field import MeanField
from proxscore.inference.families.mixture import Mixture

#: Those that a file can name; a Distribution holds code.
FAMILIES: dict[str, type[Family]] = {
    family.kind: family for family in (MeanField, FullCovariance, LowRank, Kronecker, Mixture)
}

__all__ = [
    "FAMILIES",
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
