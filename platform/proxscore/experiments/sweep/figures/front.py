"""Two objectives: the trials that no other one beats in both."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxscore.calibration.comparison import finish
from proxscore.experiments.sweep.figures.drawing import (
    INK,
    RED,
    count,
    drawn_heights,
    frame,
    left_out,
    measured,
    one_panel,
    scatter,
    words,
)
from proxscore.experiments.sweep.ledger import Trial


def pareto_front(trials: Sequence[Trial], first: str, second: str) -> Figure:
    """Two objectives to be minimised; steps join the finished trials that no other finished one beats."""
    drawn = [trial for trial in measured(trials, first) if math.isfinite(trial.value(second))]
    if not drawn:
        return words(f"No trial has a finite {first} and a finite {second}{left_out(trials, drawn)}.")
    (xs, x_note), (ys, y_note) = (drawn_heights(drawn, name, False) for name in (first, second))
    points = list(zip(xs, ys, strict=True))
    figure, axes = one_panel((6.0, 4.8))
    scatter(axes, drawn, points)
    finished = [i for i, trial in enumerate(drawn) if trial.status == "finished"]
    front = [finished[i] for i in pareto([(drawn[i].value(first), drawn[i].value(second)) for i in finished])]
    if front:
        steps = sorted(points[i] for i in front)
        axes.step(*zip(*steps, strict=True), where="post", color=RED, marker="o", zorder=3, label="not dominated")
    _name_points(axes, [(points[i], str(drawn[i].number)) for i in front], (max(xs) - min(xs), max(ys) - min(ys)))
    frame(xs, axes.set_xlim)
    frame(ys, axes.set_ylim)
    axes.set(xlabel=first + x_note, ylabel=second + y_note)
    axes.set_title(f"{count(drawn)}{left_out(trials, drawn)}", fontsize=10, color=INK)
    finish(figure)
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, in their order, of the points that no other one beats: none is at most as large in both, smaller in one.

    Equal points do not beat each other, and all of them are kept; one with NaN never is.
    """
    kept: list[int] = []
    numbers = [i for i, point in enumerate(points) if not any(math.isnan(value) for value in point)]
    for i in sorted(numbers, key=lambda i: points[i]):
        if not kept or points[i][1] < points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return sorted(kept)


def _name_points(axes: Axes, named: Sequence[tuple[tuple[float, float], str]], extent: tuple[float, float]) -> None:
    """Names of the points of a front, on the side where no others are; neighbours share a line."""
    groups: list[tuple[tuple[float, float], list[str]]] = []
    for point, name in sorted(named, key=lambda pair: pair[0]):
        first = groups[-1][0] if groups else (math.inf, math.inf)
        if all(abs(at - before) < 0.07 * (size or 1.0) for at, before, size in zip(point, first, extent, strict=True)):
            groups[-1][1].append(name)
        else:
            groups.append((point, [name]))
    for point, names in groups:
        text, away = textwrap.fill(", ".join(names), 18), (-4, -4)
        axes.annotate(text, point, away, textcoords="offset points", ha="right", va="top", fontsize=8, color=INK)
