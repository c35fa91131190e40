"""How a search went: the objective trial by trial, and epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from proxscore.calibration.comparison import finish
from proxscore.experiments.sweep.figures.drawing import (
    BLUE,
    GREY,
    INK,
    PALE,
    RED,
    best,
    best_so_far,
    clipped,
    count,
    drawn_heights,
    frame,
    measured,
    one_panel,
    scatter,
    words,
)
from proxscore.experiments.sweep.ledger import Trial


def objective_over_time(trials: Sequence[Trial], objective: str, maximise: bool = False) -> Figure:
    """The objective of each trial in their order, and the best so far of the finished ones."""
    if not trials:
        return words("There are no trials.")
    figure, axes = one_panel((7.0, 4.2))
    drawn = measured(trials, objective)
    heights, note = drawn_heights(drawn, objective, maximise)
    points = [(trial.number, height) for trial, height in zip(drawn, heights, strict=True)]
    scatter(axes, drawn, points)
    frame(heights, axes.set_ylim)
    numbers, values = best_so_far(drawn, objective, maximise)
    if numbers:
        last = max(trial.number for trial in trials)
        axes.step([*numbers, last], [*values, values[-1]], color=RED, linewidth=1.6, where="post", label="best so far")
    given = [point[1] for trial, point in zip(drawn, points, strict=True) if not trial.params]
    if given:
        axes.axhline(given[0], color=INK, linewidth=0.9, linestyle=":", label="as given", zorder=1)
    for label, color, failed in (("failed", RED, True), ("no finite value", GREY, False)):
        without = [trial.number for trial in trials if trial not in drawn and (trial.status == "failed") == failed]
        if without:
            margin = axes.get_xaxis_transform()
            places = [0.03] * len(without)
            axes.scatter(without, places, marker="x", s=28, color=color, transform=margin, zorder=3, label=label)
    axes.set(xlabel="trial", ylabel=objective)
    axes.set_title(f"{count(trials)}{note}", fontsize=10, color=INK)
    axes.set_xlim(min(trial.number for trial in trials) - 0.8, max(trial.number for trial in trials) + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not drawn:
        axes.set_yticks([])
    finish(figure)
    return figure


def learning_curves(trials: Sequence[Trial], objective: str, maximise: bool = False) -> Figure:
    """The objective in validation over epochs, a line per trial; one stopped early is faint and ends in a dot."""
    curves = [(trial, *_curve(trial, objective)) for trial in trials]
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return words(f"No trial was validated with a finite {objective}.")
    figure, axes = one_panel((7.0, 4.4))
    leader, named = best(trials, objective, maximise), set()
    for trial, epochs, values in curves:
        label, style = _curve_style(trial, trial is leader)
        # A single validation has no line.
        mark = style.pop("marker") or ("." if len(epochs) == 1 else "")
        axes.plot(epochs, values, marker=mark, markevery=[len(epochs) - 1], **style)
        if label not in named:
            axes.lines[-1].set_label(label)
            named.add(label)
    heights = [value for _, _, values in curves for value in values]
    heights, note = clipped(heights, heights, maximise)
    frame(heights, axes.set_ylim)
    axes.set(xlabel="epochs", ylabel=f"{objective} in validation")
    beyond = "; the worst values are beyond the edge" if note else ""
    axes.set_title(f"{count(curves)}{beyond}", fontsize=10, color=INK)
    finish(figure)
    return figure


def _curve(trial: Trial, objective: str) -> tuple[list[float], list[float]]:
    """Epochs and values as far as they are finite."""
    found = [(entry["epoch"], entry.get(objective, math.nan)) for entry in trial.curve]
    found = [(epoch, value) for epoch, value in found if math.isfinite(value)]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _curve_style(trial: Trial, leads: bool) -> tuple[str, dict[str, Any]]:
    """The name of a kind of learning curve, and its line."""
    if leads:
        name = f"trial {trial.number}" if trial.params else "as given"
        return f"{name}, the best", {"color": RED, "linewidth": 2.4, "zorder": 4, "marker": ""}
    if not trial.params:
        return "as given", {"color": INK, "linewidth": 1.4, "linestyle": "--", "zorder": 3, "marker": ""}
    if trial.status == "stopped":
        return "stopped early", {"color": PALE, "linewidth": 0.9, "zorder": 1, "marker": "o", "markersize": 3.5}
    if trial.status == "failed":
        return "failed", {"color": GREY, "linewidth": 0.9, "zorder": 1, "marker": "x", "markersize": 5}
    name, color = ("finished", BLUE) if trial.status == "finished" else ("not at its end", GREY)
    return name, {"color": color, "linewidth": 1.1, "alpha": 0.6, "zorder": 2, "marker": ""}
