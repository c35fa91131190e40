"""The method, in torch alone: priors, likelihoods, families, penalties, schedules, and the optimizer."""

from proxscore.inference.families import MeanField
from proxscore.inference.likelihoods import Categorical, Gaussian
from proxscore.inference.optimizer import ProximalScore
from proxscore.inference.penalties import ForwardKL
from proxscore.inference.priors import Prior
from proxscore.inference.schedules import Schedule

__all__ = ["Categorical", "ForwardKL", "Gaussian", "MeanField", "Prior", "ProximalScore", "Schedule"]
