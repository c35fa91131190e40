"""What MLflow runs when it opens a logged model: it lies in the model as a text, and holds no numbers (models from code)."""

from mlflow.models import set_model

from proxscore.predictor.pyfunc import PosteriorModel

set_model(PosteriorModel())
