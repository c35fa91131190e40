"""Figures of a sweep: what was tried, how it went, what mattered, and the schedules that came of it.

Each is a figure outside pyplot's state, as those of forecasts are, and can be drawn of any trials of a search: where there
is nothing to show, it says why in words. The best trial is one of the finished ones: others were measured earlier, or with
fewer draws. Values so bad that they would flatten the others are drawn at the edge, and the title counts them.
"""

from proxscore.experiments.sweep.figures.drawing import FEWEST, OUTLYING, best, best_so_far, short_labels
from proxscore.experiments.sweep.figures.explained import importance
from proxscore.experiments.sweep.figures.front import pareto, pareto_front
from proxscore.experiments.sweep.figures.parallel import MISSING, parallel_coordinates
from proxscore.experiments.sweep.figures.progress import learning_curves, objective_over_time
from proxscore.experiments.sweep.figures.weights import DECADES, schedules

__all__ = [
    "DECADES",
    "FEWEST",
    "MISSING",
    "OUTLYING",
    "best",
    "best_so_far",
    "importance",
    "learning_curves",
    "objective_over_time",
    "parallel_coordinates",
    "pareto",
    "pareto_front",
    "schedules",
    "short_labels",
]
