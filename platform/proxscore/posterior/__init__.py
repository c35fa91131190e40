"""What inference leaves behind: draws from a posterior, prediction, saving and loading."""

from proxscore.posterior.posterior import Posterior
from proxscore.posterior.prediction import CategoricalPredictive, predict

__all__ = ["CategoricalPredictive", "Posterior", "predict"]
