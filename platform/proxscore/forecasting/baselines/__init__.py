"""What any network must beat: simple and customary methods, each of which forecasts a Gaussian for every step.

One file for each sort of method; see :mod:`proxscore.forecasting.baselines.names` for all of them, and for how to add one.
"""

from proxscore.forecasting.baselines.history import History, filled, naive, seasons
from proxscore.forecasting.baselines.judging import Fitted, Judged, best_of_each, judge
from proxscore.forecasting.baselines.names import BASELINES

__all__ = ["BASELINES", "Fitted", "History", "Judged", "best_of_each", "filled", "judge", "naive", "seasons"]
