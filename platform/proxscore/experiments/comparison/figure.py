"""All methods of a comparison in the figure of its task."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from proxscore.calibration.comparison import Curve
from proxscore.experiments.comparison import records
from proxscore.experiments.comparison.plan import Plan
from proxscore.experiments.comparison.table import Row


def draw(plan: Plan, table: Sequence[Row]) -> Figure | None:
    """A method's colour is the same in all panels; dashed as it is given, solid tuned."""
    names = [contender.name for contender in plan.contenders]
    shades = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = [*shades[::2], *shades[1::2]]  # the dark ones first
    curves = []
    for row in table:
        if not row.records:
            continue
        tuned = not row.contender.trials or row.label != row.contender.name
        style = {
            "color": colours[names.index(row.contender.name) % len(colours)],
            "linestyle": "-" if tuned else "--",
            "linewidth": 1.4 if tuned else 0.9,
            "label": row.label,
        }
        folders = [plan.cell(row.contender, str(row.setting), seed).folder for seed in row.records]
        curves.append(Curve([records.predictions(folder) for folder in folders], style))
    return plan.task.evaluator.comparison_figure(curves, plan.config.evaluation.bins)
