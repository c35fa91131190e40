"""What was tried: parallel coordinates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from proxscore.experiments.sweep.figures.drawing import (
    GREY,
    INK,
    RED,
    best,
    count,
    drawn_heights,
    left_out,
    legend_below,
    measured,
    one_panel,
    short_labels,
    words,
)
from proxscore.experiments.sweep.ledger import Trial
from proxscore.experiments.sweep.space import Domain, Space

WIDEST = 15.0  # inches: a page shows a figure at its own width
MISSING = -0.14  # where trials without a parameter pass its axis, which reaches from 0 to 1


def parallel_coordinates(trials: Sequence[Trial], space: Space, objective: str, maximise: bool = False) -> Figure:
    """One axis per searched parameter, and one for the objective; a line per trial in the colour of its objective."""
    drawn = measured(trials, objective)
    if not drawn:
        return words(f"No trial has a finite {objective}{left_out(trials, drawn)}.")
    values, note = drawn_heights(drawn, objective, maximise)
    labels = short_labels(list(space))
    goal = _numbers(objective, min(values), max(values))
    scales = {key: _scale(labels[key], domain) for key, domain in space.items()}
    figure, host = one_panel((max(6.0, min(1.5 * len(scales) + 2.0, WIDEST)), 4.8))
    _upright(host, [*scales.values(), goal])
    leader = best(drawn, objective, maximise)
    # The better ones come last and lie above the others.
    for value, trial in sorted(zip(values, drawn, strict=True), key=lambda pair: pair[0], reverse=not maximise):
        end = goal.place(value)
        if not trial.params:
            label = "as given, the best" if trial is leader else "as given"
            host.plot(len(scales), end, "D", color=INK, markersize=7, clip_on=False, zorder=4, label=label)
            continue
        heights = [scale.place(trial.params[key]) if key in trial.params else MISSING for key, scale in scales.items()]
        style: dict[str, Any] = {"color": colormaps["viridis"](0.92 * (1 - end if maximise else end)), "alpha": 0.7}
        if trial is leader:
            style = {"color": RED, "linewidth": 2.6, "zorder": 3, "label": f"trial {trial.number}, the best"}
        host.plot(range(len(scales) + 1), [*heights, end], **({"linewidth": 1.1} | style))
    for i, key in enumerate(scales):
        if any(trial.params and key not in trial.params for trial in drawn):
            host.vlines(i, MISSING, 0, color=GREY, linestyle=":", linewidth=0.8)
            host.text(i - 0.04, MISSING, "—", ha="right", va="center", fontsize=9, color=INK)
    host.set_title(f"{count(drawn)}{left_out(trials, drawn)}{note}", fontsize=10, color=INK)
    legend_below(figure, host)
    return figure


@dataclass(frozen=True)
class _Scale:
    """An axis of parallel coordinates; it reaches from 0 to 1 of the height.

    Attributes:
        place: of a value, in the height.
        ticks: places and their labels.
    """

    label: str
    place: Callable[[Any], float]
    ticks: list[tuple[float, str]]


def _scale(label: str, domain: Domain) -> _Scale:
    """Choices as equal steps, numbers between the two ends of their range."""
    if domain.kind != "choice":
        log, whole = domain.kind == "loguniform", domain.kind == "randint"
        return _numbers(f"{label}\n(log)" if log else label, *domain.values, log=log, whole=whole)
    known = [repr(value) for value in domain.values]
    step = 1 / max(len(known) - 1, 1)
    texts = [value if isinstance(value, str) else json.dumps(value) for value in domain.values]
    ticks = [(i * step, text) for i, text in enumerate(texts)]
    return _Scale(label, lambda value: known.index(repr(value)) * step, ticks)


def _numbers(label: str, low: float, high: float, *, log: bool = False, whole: bool = False) -> _Scale:
    """Ticks at both ends, and at round numbers that keep clear of them."""

    def place(value: float) -> float:
        if low == high:
            return 0.5
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    if not log:
        inner = [float(value) for value in MaxNLocator(5, integer=whole).tick_values(low, high)]
    else:
        first, decades = math.floor(math.log10(low)), math.log10(high / low)
        multiples = (1, 2, 5) if decades < 2 else (1,)
        powers = range(first, first + math.ceil(decades) + 2, math.ceil(decades / 6))
        inner = [multiple * 10.0**power for power in powers for multiple in multiples]
    ticks = [low, *(value for value in inner if low < value < high and 0.07 < place(value) < 0.93), high]
    return _Scale(label, place, [(place(value), f"{value:.4g}") for value in dict.fromkeys(ticks)])


def _upright(host: Axes, scales: Sequence[_Scale]) -> None:
    """The axes of parallel coordinates, side by side on one that is not seen itself."""
    host.set(xlim=(-0.1, len(scales) - 0.9), ylim=(MISSING - 0.04, 1.03), yticks=[])
    host.set_xticks(range(len(scales)), [_broken(scale.label) for scale in scales], fontsize=8, color=INK)
    host.spines[:].set_visible(False)
    host.tick_params(length=0)
    for i, scale in enumerate(scales):
        axes = host.twinx()
        axes.set_ylim(host.get_ylim())
        axes.spines[:].set_visible(False)
        axes.spines["right"].set(visible=True, position=("data", i), bounds=(0, 1), color=INK)
        axes.set_yticks(*zip(*scale.ticks, strict=True), fontsize=7, color=INK)
        for text in axes.get_yticklabels():  # lines run behind them
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6})


def _broken(label: str) -> str:
    """A long label in two lines, so that it keeps clear of its neighbours."""
    return label if max(map(len, label.split("\n"))) <= 16 else label.replace(".", ".\n")
