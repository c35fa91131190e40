"""Proximal penalties, one file each; :mod:`proxscore.inference.penalties.base` has what they share."""

from proxscore.inference.penalties.base import SMALLEST_RATIO, Penalty, Weight
from proxscore.inference.penalties.forward_kl import ForwardKL
from proxscore.inference.penalties.no_penalty import NoPenalty
from proxscore.inference.penalties.quadratic import Quadratic
from proxscore.inference.penalties.reverse_kl import ReverseKL

__all__ = [
    "SMALLEST_RATIO",
    "ForwardKL",
    "NoPenalty",
    "Penalty",
    "Quadratic",
    "ReverseKL",
    "Weight",
]
