"""What the figures of a sweep have in common: colours, limits, and how trials are counted and placed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from proxscore.experiments.sweep.ledger import Trial

BLUE, RED, INK, GREY = "#3b6fb6", "#d9534f", "#333333", "#999999"
MARKERS: dict[str, dict[str, Any]] = {
    "finished": {"color": BLUE},
    "stopped early": {"facecolors": "none", "edgecolors": BLUE},
    "not at its end": {"facecolors": "none", "edgecolors": GREY, "marker": "s"},
}
FEWEST = 4  # trials below which a share of their variance says nothing
OUTLYING = 8.0  # median absolute deviations from the median beyond which a bad value is drawn at the edge


def short_labels(keys: Sequence[str]) -> dict[str, str]:
    """The last two parts of each dotted key below its section (``prior.scale``), more where those are not unique."""
    labels: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(min(2, max(len(parts) - 1, 1)), len(parts) + 1)]
        labels[key] = next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)
    return labels


def measured(trials: Sequence[Trial], objective: str) -> list[Trial]:
    return [trial for trial in trials if trial.status != "failed" and math.isfinite(trial.value(objective))]


def count(trials: Sequence[object]) -> str:
    return f"{len(trials)} trial{'' if len(trials) == 1 else 's'}"


def left_out(trials: Sequence[Trial], drawn: Sequence[Trial]) -> str:
    failed = sum(trial.status == "failed" for trial in trials)
    other = len(trials) - len(drawn) - failed
    parts = [f"{number} {what}" for number, what in ((failed, "failed"), (other, "without a finite value")) if number]
    return f" (left out: {', '.join(parts)})" if parts else ""


def drawn_heights(trials: Sequence[Trial], objective: str, maximise: bool) -> tuple[list[float], str]:
    """Objectives as they are drawn, and a note of those moved. Finished trials say what is outlying, if there are some:
    those stopped after an epoch may be many, and far from anything that matters."""
    finished = [trial.value(objective) for trial in trials if trial.status == "finished"]
    values = [trial.value(objective) for trial in trials]
    return clipped(values, finished if len(finished) >= FEWEST else values, maximise)


def clipped(values: Sequence[float], typical: Sequence[float], maximise: bool) -> tuple[list[float], str]:
    """The values, those outlying on the bad side moved to the worst of the others, and a note of how many."""
    if not values:
        return [], ""
    sign = -1 if maximise else 1
    middle = np.median(typical)
    spread = np.median(np.abs(np.asarray(typical) - middle))
    outlying = [bool(0 < OUTLYING * spread < sign * (value - middle)) for value in values]
    if not any(outlying):
        return list(values), ""
    edge = sign * max(sign * value for value, far in zip(values, outlying, strict=True) if not far)
    moved = [edge if far else value for value, far in zip(values, outlying, strict=True)]
    return moved, f"; {sum(outlying)} worse than {edge:.3g}, drawn at the edge"


def frame(values: Sequence[float], set_limits: Callable[[float, float], Any]) -> None:
    """Limits with room for markers, and below for crosses; so too where all values are one."""
    if values:
        low, high = min(values), max(values)
        room = (high - low) or abs(high) or 1.0
        set_limits(low - 0.12 * room, high + 0.08 * room)


def one_panel(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, figure.subplots()


def words(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = Figure(figsize=(6.0, 2.0), dpi=150)
    figure.text(0.5, 0.5, textwrap.fill(text, 70), ha="center", va="center", fontsize=10, color=INK)
    return figure


def scatter(axes: Axes, trials: Sequence[Trial], points: Sequence[tuple[float, float]]) -> None:
    """A point per trial, with the marker of its status."""
    names = {"finished": "finished", "stopped": "stopped early"}
    for label, style in MARKERS.items():
        pairs = zip(trials, points, strict=True)
        chosen = [point for trial, point in pairs if names.get(trial.status, "not at its end") == label]
        if chosen:
            xs, ys = zip(*chosen, strict=True)
            axes.scatter(xs, ys, s=28, zorder=2.5, label=label, **style)
