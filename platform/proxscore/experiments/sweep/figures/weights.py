"""The proximal weights that schedules give over a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from proxscore.calibration.comparison import finish
from proxscore.config import Config
from proxscore.experiments.sweep.figures.drawing import INK, words
from proxscore.methods import RunLength

_ENTRIES = ("#3b6fb6", "#d9534f", "#3a9a6e", "#e0972f", "#7d5ba6", "#4aa3b8", "#8c6d4f", "#777777")
DECADES = 1e4  # of a proximal weight above its least: beyond, the step is as good as none


def schedules(entries: Sequence[tuple[str, Config]], length: RunLength) -> Figure:
    """Proximal weights of mean and precision over epochs; a line breaks off where its schedule is at zero."""
    penalties = [
        (name, config.method.penalty.build(length.total_steps, length.steps_per_epoch))
        for name, config in entries
        if config.method.proximal
    ]
    if not penalties:
        return words("No configuration trains by proximal score matching: there are no proximal weights to draw.")
    steps = np.unique(np.linspace(0, length.total_steps - 1, 2001).round().astype(int))
    figure = Figure(figsize=(9.0, 4.2), dpi=150, layout="constrained")
    for axes, part, column in zip(figure.subplots(1, 2), ("mean", "precision"), (1, 0), strict=True):
        for i, (name, penalty) in enumerate(penalties):
            weights = np.array([penalty.weights(int(step))[column] for step in steps])
            # Early lines are wide: they show below a later one that takes the same way.
            width = 1.2 + 1.8 * (1 - (i + 1) / len(penalties))
            weights[np.isinf(weights)] = np.nan
            axes.plot(steps / length.steps_per_epoch, weights, color=_ENTRIES[i % len(_ENTRIES)], lw=width, label=name)
        axes.set(xlabel="epochs", yscale="log", ylabel=f"proximal weight of the {part}")
        _cut(axes)
    finish(figure)
    return figure


def _cut(axes: Axes) -> None:
    """End a logarithmic axis some decades above its least weight: a schedule near zero would take up all the height."""
    weights = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    if np.isfinite(weights).any():
        low, high = np.nanmin(weights), np.nanmax(weights)
        cut = high > low * DECADES
        room = 1.5 if high > 100 * low else 12.0  # two powers of ten at least, which alone have labels
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / room, low * DECADES if cut else high * room)
        if cut:
            axes.set_title("beyond the edge, the step is as good as none", fontsize=9, color=INK)
