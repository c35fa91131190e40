"""What inference leaves behind: draws from a posterior, prediction, saving and loading."""

from proxscore.posterior.dropout import DropoutPosterior
from proxscore.posterior.posterior import NameOf, Posterior
from proxscore.posterior.prediction import predict
from proxscore.posterior.predictives import CategoricalPredictive, GaussianPredictive, MultiLabelPredictive
from proxscore.posterior.samples import Samples
from proxscore.posterior.settled import UntilSettled
from proxscore.posterior.single_pass import difference, predict_in_one_pass
from proxscore.posterior.swag import SWAGPosterior

__all__ = [
    "CategoricalPredictive",
    "DropoutPosterior",
    "GaussianPredictive",
    "MultiLabelPredictive",
    "NameOf",
    "Posterior",
    "SWAGPosterior",
    "Samples",
    "UntilSettled",
    "difference",
    "predict",
    "predict_in_one_pass",
]
