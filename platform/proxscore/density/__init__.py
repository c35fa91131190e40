"""Posteriors of densities that are functions of named tensors: no network, no likelihood object, no loader.

posterior = fit(log_density, {"mu": torch.zeros(()), "log_tau": torch.zeros(()), "eta": torch.zeros(8)})
posterior.mean, posterior.sd(), posterior.covariance(), posterior.sample(1000)
"""

from proxscore.density.fitting import METHODS, fit
from proxscore.density.target import Target

__all__ = ["METHODS", "Target", "fit"]
