"""The method, in torch alone: priors, likelihoods, families, penalties, schedules, and the optimizer."""

from proxscore.inference.families import Distribution, Family, FullCovariance, Kronecker, LowRank, MeanField, Mixture
from proxscore.inference.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, MultiLabel
from proxscore.inference.optimizer import ProximalScore
from proxscore.inference.penalties import ForwardKL, NoPenalty, Quadratic, ReverseKL
from proxscore.inference.priors import Prior
from proxscore.inference.schedules import Schedule
from proxscore.inference.solver import GradientSolver

__all__ = [
    "Bernoulli",
    "Categorical",
    "Distribution",
    "Family",
    "ForwardKL",
    "FullCovariance",
    "Gaussian",
    "GradientSolver",
    "HeteroscedasticGaussian",
    "Kronecker",
    "LowRank",
    "MeanField",
    "Mixture",
    "MultiLabel",
    "NoPenalty",
    "Prior",
    "ProximalScore",
    "Quadratic",
    "ReverseKL",
    "Schedule",
]
