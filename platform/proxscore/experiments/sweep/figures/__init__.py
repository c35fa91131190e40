"""Figures of a sweep. What Optuna draws of a search is Optuna's; fronts with errors and schedules are drawn here.

Each is a figure outside pyplot's state, and can be drawn of any trials of a search: where there is nothing to show, it says why
in words.
"""

from proxscore.experiments.sweep.figures.drawing import FEWEST, OUTLYING, short_labels
from proxscore.experiments.sweep.figures.front import pareto, pareto_front
from proxscore.experiments.sweep.figures.optuna_plots import drawn, study_of
from proxscore.experiments.sweep.figures.weights import DECADES, schedules

__all__ = [
    "DECADES",
    "FEWEST",
    "OUTLYING",
    "drawn",
    "pareto",
    "pareto_front",
    "schedules",
    "short_labels",
    "study_of",
]
