"""Variational families."""

from proxscore.inference.families.mean_field import MeanField

__all__ = ["MeanField"]
