"""Figures of a sweep: what was tried, how it went, what mattered, and the schedules that came of it.

Each is a figure outside pyplot's state, as those of forecasts are, and can be drawn of any trials of a search: where there
is nothing to show, it says why in words. The best trial is one of the finished ones: others were measured earlier, or with
fewer draws. Values so bad that they would flatten the others are drawn at the edge, and the title counts them.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from proxscore.calibration.comparison import finish
from proxscore.config import Config, ProximalScoreConfig
from proxscore.methods import Horizon
from proxscore.methods.proximal_score import _penalty
from proxscore.tuning.ledger import Trial
from proxscore.tuning.space import Domain, Space, distribution

_BLUE, _PALE, _RED, _INK, _GREY = "#3b6fb6", "#a9bfdc", "#d9534f", "#333333", "#999999"
_ENTRIES = ("#3b6fb6", "#d9534f", "#3a9a6e", "#e0972f", "#7d5ba6", "#4aa3b8", "#8c6d4f", "#777777")
_MARKERS: dict[str, dict[str, Any]] = {
    "finished": {"color": _BLUE},
    "stopped early": {"facecolors": "none", "edgecolors": _BLUE},
    "not at its end": {"facecolors": "none", "edgecolors": _GREY, "marker": "s"},
}

MISSING = -0.14  # where trials without a parameter pass its axis, which reaches from 0 to 1
FEWEST = 4  # trials below which a share of their variance says nothing
OUTLYING = 8.0  # median absolute deviations from the median beyond which a bad value is drawn at the edge
DECADES = 1e4  # of a proximal weight above its least: beyond, the step is as good as none


def parallel_coordinates(trials: Sequence[Trial], space: Space, objective: str, maximise: bool = False) -> Figure:
    """One axis per searched parameter, and one for the objective; a line per trial in the colour of its objective."""
    drawn = _measured(trials, objective)
    if not drawn:
        return _words(f"No trial has a finite {objective}{_left_out(trials, drawn)}.")
    values, note = _heights(drawn, objective, maximise)
    labels = short_labels(list(space))
    goal = _numbers(objective, min(values), max(values))
    scales = {key: _scale(labels[key], domain) for key, domain in space.items()}
    figure, host = _one_panel((max(6.0, 1.5 * len(scales) + 2.0), 4.8))
    _upright(host, [*scales.values(), goal])
    leader = best(drawn, objective, maximise)
    # The better ones come last and lie above the others.
    for value, trial in sorted(zip(values, drawn, strict=True), key=lambda pair: pair[0], reverse=not maximise):
        end = goal.place(value)
        if not trial.params:
            label = "as given, the best" if trial is leader else "as given"
            host.plot(len(scales), end, "D", color=_INK, markersize=7, clip_on=False, zorder=4, label=label)
            continue
        heights = [scale.place(trial.params[key]) if key in trial.params else MISSING for key, scale in scales.items()]
        style: dict[str, Any] = {"color": colormaps["viridis"](0.92 * (1 - end if maximise else end)), "alpha": 0.7}
        if trial is leader:
            style = {"color": _RED, "linewidth": 2.6, "zorder": 3, "label": f"trial {trial.number}, the best"}
        host.plot(range(len(scales) + 1), [*heights, end], **({"linewidth": 1.1} | style))
    for i, key in enumerate(scales):
        if any(trial.params and key not in trial.params for trial in drawn):
            host.vlines(i, MISSING, 0, color=_GREY, linestyle=":", linewidth=0.8)
            host.text(i - 0.04, MISSING, "—", ha="right", va="center", fontsize=9, color=_INK)
    host.set_title(f"{_count(drawn)}{_left_out(trials, drawn)}{note}", fontsize=10, color=_INK)
    _legend_below(figure, host)
    return figure


def objective_over_time(trials: Sequence[Trial], objective: str, maximise: bool = False) -> Figure:
    """The objective of each trial in their order, and the best so far of the finished ones."""
    if not trials:
        return _words("There are no trials.")
    figure, axes = _one_panel((7.0, 4.2))
    drawn = _measured(trials, objective)
    heights, note = _heights(drawn, objective, maximise)
    points = [(trial.number, height) for trial, height in zip(drawn, heights, strict=True)]
    _scatter(axes, drawn, points)
    _frame(heights, axes.set_ylim)
    numbers, values = best_so_far(drawn, objective, maximise)
    if numbers:
        last = max(trial.number for trial in trials)
        axes.step([*numbers, last], [*values, values[-1]], color=_RED, linewidth=1.6, where="post", label="best so far")
    given = [point[1] for trial, point in zip(drawn, points, strict=True) if not trial.params]
    if given:
        axes.axhline(given[0], color=_INK, linewidth=0.9, linestyle=":", label="as given", zorder=1)
    for label, color, failed in (("failed", _RED, True), ("no finite value", _GREY, False)):
        without = [trial.number for trial in trials if trial not in drawn and (trial.status == "failed") == failed]
        if without:
            margin = axes.get_xaxis_transform()
            places = [0.03] * len(without)
            axes.scatter(without, places, marker="x", s=28, color=color, transform=margin, zorder=3, label=label)
    axes.set(xlabel="trial", ylabel=objective)
    axes.set_title(f"{_count(trials)}{note}", fontsize=10, color=_INK)
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
        return _words(f"No trial was validated with a finite {objective}.")
    figure, axes = _one_panel((7.0, 4.4))
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
    heights, note = _clipped(heights, heights, maximise)
    _frame(heights, axes.set_ylim)
    axes.set(xlabel="epochs", ylabel=f"{objective} in validation")
    beyond = "; the worst values are beyond the edge" if note else ""
    axes.set_title(f"{_count(curves)}{beyond}", fontsize=10, color=_INK)
    finish(figure)
    return figure


def importance(trials: Sequence[Trial], space: Space, objective: str) -> Figure:
    """How much of the differences in the objective each parameter explains alone, over the space (fANOVA).

    Parameters that all trials have share one analysis. A conditional one is set against them in another, of the trials that
    have it: its bar has an asterisk, as the bars together do not add up to one.
    """
    ended = [trial for trial in trials if trial.status in ("finished", "stopped")]
    counted = [trial for trial in _measured(ended, objective) if trial.params]
    if len(counted) < FEWEST:
        return _words(f"{_count(counted)} of the search with a finite {objective}: importance needs {FEWEST}.")
    if len({trial.value(objective) for trial in counted}) == 1:
        return _words(f"All of {_count(counted)} have the same {objective}: there is nothing to explain.")
    shared = [key for key in space if all(key in trial.params for trial in counted)]
    shares = _shares(counted, shared, space, objective)
    few: list[str] = []
    for key in space:
        having = [trial for trial in counted if key in trial.params]
        if key in shared:
            continue
        if len(having) < FEWEST:
            few.append(key)
        else:
            shares |= {k: v for k, v in _shares(having, [*shared, key], space, objective).items() if k == key}
    if not shares:
        return _words(f"The trials differ in {objective}, but no parameter of the search explains it.")
    return _bars(shares, shared, few, short_labels(list(space)), f"{objective}, {_count(counted)}")


def pareto_front(trials: Sequence[Trial], first: str, second: str) -> Figure:
    """Two objectives to be minimised; steps join the finished trials that no other finished one beats."""
    drawn = [trial for trial in _measured(trials, first) if math.isfinite(trial.value(second))]
    if not drawn:
        return _words(f"No trial has a finite {first} and a finite {second}{_left_out(trials, drawn)}.")
    (xs, x_note), (ys, y_note) = (_heights(drawn, name, False) for name in (first, second))
    points = list(zip(xs, ys, strict=True))
    figure, axes = _one_panel((6.0, 4.8))
    _scatter(axes, drawn, points)
    finished = [i for i, trial in enumerate(drawn) if trial.status == "finished"]
    front = [finished[i] for i in pareto([(drawn[i].value(first), drawn[i].value(second)) for i in finished])]
    if front:
        steps = sorted(points[i] for i in front)
        axes.step(*zip(*steps, strict=True), where="post", color=_RED, marker="o", zorder=3, label="not dominated")
    _name_points(axes, [(points[i], str(drawn[i].number)) for i in front], (max(xs) - min(xs), max(ys) - min(ys)))
    _frame(xs, axes.set_xlim)
    _frame(ys, axes.set_ylim)
    axes.set(xlabel=first + x_note, ylabel=second + y_note)
    axes.set_title(f"{_count(drawn)}{_left_out(trials, drawn)}", fontsize=10, color=_INK)
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


def schedules(entries: Sequence[tuple[str, Config]], horizon: Horizon) -> Figure:
    """Proximal weights of mean and precision over epochs; a line breaks off where its schedule is at zero."""
    penalties = [
        (name, _penalty(config.method.penalty, horizon))
        for name, config in entries
        if isinstance(config.method, ProximalScoreConfig)
    ]
    if not penalties:
        return _words("No configuration trains by proximal score matching: there are no proximal weights to draw.")
    steps = np.unique(np.linspace(0, horizon.total_steps - 1, 2001).round().astype(int))
    figure = Figure(figsize=(9.0, 4.2), dpi=150, layout="constrained")
    for axes, part, column in zip(figure.subplots(1, 2), ("mean", "precision"), (1, 0), strict=True):
        for i, (name, penalty) in enumerate(penalties):
            weights = np.array([penalty.weights(int(step))[column] for step in steps])
            # Early lines are wide: they show below a later one that takes the same way.
            width = 1.2 + 1.8 * (1 - (i + 1) / len(penalties))
            weights[np.isinf(weights)] = np.nan
            axes.plot(steps / horizon.steps_per_epoch, weights, color=_ENTRIES[i % len(_ENTRIES)], lw=width, label=name)
        axes.set(xlabel="epochs", yscale="log", ylabel=f"proximal weight of the {part}")
        _cut(axes)
    finish(figure)
    return figure


def best(trials: Sequence[Trial], objective: str, maximise: bool = False) -> Trial | None:
    """The finished trial with the best finite objective; of equal ones the first."""
    finished = [trial for trial in _measured(trials, objective) if trial.status == "finished"]
    sign = -1 if maximise else 1
    return min(finished, key=lambda trial: (sign * trial.value(objective), trial.number), default=None)


def best_so_far(trials: Sequence[Trial], objective: str, maximise: bool = False) -> tuple[list[int], list[float]]:
    """Numbers of the finished trials in their order, and the best objective up to each."""
    finished = [trial for trial in _measured(trials, objective) if trial.status == "finished"]
    finished.sort(key=lambda trial: trial.number)
    accumulate = np.maximum.accumulate if maximise else np.minimum.accumulate
    values = accumulate([trial.value(objective) for trial in finished]) if finished else np.zeros(0)
    return [trial.number for trial in finished], values.tolist()


def short_labels(keys: Sequence[str]) -> dict[str, str]:
    """The last two parts of each dotted key below its section (``prior.scale``), more where those are not unique."""
    labels: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(min(2, max(len(parts) - 1, 1)), len(parts) + 1)]
        labels[key] = next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)
    return labels


def _measured(trials: Sequence[Trial], objective: str) -> list[Trial]:
    return [trial for trial in trials if trial.status != "failed" and math.isfinite(trial.value(objective))]


def _count(trials: Sequence[object]) -> str:
    return f"{len(trials)} trial{'' if len(trials) == 1 else 's'}"


def _left_out(trials: Sequence[Trial], drawn: Sequence[Trial]) -> str:
    failed = sum(trial.status == "failed" for trial in trials)
    other = len(trials) - len(drawn) - failed
    parts = [f"{number} {what}" for number, what in ((failed, "failed"), (other, "without a finite value")) if number]
    return f" (left out: {', '.join(parts)})" if parts else ""


def _heights(trials: Sequence[Trial], objective: str, maximise: bool) -> tuple[list[float], str]:
    """Objectives as they are drawn, and a note of those moved. Finished trials say what is outlying, if there are some:
    those stopped after an epoch may be many, and far from anything that matters."""
    finished = [trial.value(objective) for trial in trials if trial.status == "finished"]
    values = [trial.value(objective) for trial in trials]
    return _clipped(values, finished if len(finished) >= FEWEST else values, maximise)


def _clipped(values: Sequence[float], typical: Sequence[float], maximise: bool) -> tuple[list[float], str]:
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


def _frame(values: Sequence[float], set_limits: Callable[[float, float], Any]) -> None:
    """Limits with room for markers, and below for crosses; so too where all values are one."""
    if values:
        low, high = min(values), max(values)
        room = (high - low) or abs(high) or 1.0
        set_limits(low - 0.12 * room, high + 0.08 * room)


def _one_panel(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, figure.subplots()


def _words(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = Figure(figsize=(6.0, 2.0), dpi=150)
    figure.text(0.5, 0.5, textwrap.fill(text, 70), ha="center", va="center", fontsize=10, color=_INK)
    return figure


def _scatter(axes: Axes, trials: Sequence[Trial], points: Sequence[tuple[float, float]]) -> None:
    """A point per trial, with the marker of its status."""
    names = {"finished": "finished", "stopped": "stopped early"}
    for label, style in _MARKERS.items():
        pairs = zip(trials, points, strict=True)
        chosen = [point for trial, point in pairs if names.get(trial.status, "not at its end") == label]
        if chosen:
            xs, ys = zip(*chosen, strict=True)
            axes.scatter(xs, ys, s=28, zorder=2.5, label=label, **style)


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
        axes.annotate(text, point, away, textcoords="offset points", ha="right", va="top", fontsize=8, color=_INK)


def _curve(trial: Trial, objective: str) -> tuple[list[float], list[float]]:
    """Epochs and values as far as they are finite."""
    found = [(entry["epoch"], entry.get(objective, math.nan)) for entry in trial.curve]
    found = [(epoch, value) for epoch, value in found if math.isfinite(value)]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _curve_style(trial: Trial, leads: bool) -> tuple[str, dict[str, Any]]:
    """The name of a kind of learning curve, and its line."""
    if leads:
        name = f"trial {trial.number}" if trial.params else "as given"
        return f"{name}, the best", {"color": _RED, "linewidth": 2.4, "zorder": 4, "marker": ""}
    if not trial.params:
        return "as given", {"color": _INK, "linewidth": 1.4, "linestyle": "--", "zorder": 3, "marker": ""}
    if trial.status == "stopped":
        return "stopped early", {"color": _PALE, "linewidth": 0.9, "zorder": 1, "marker": "o", "markersize": 3.5}
    if trial.status == "failed":
        return "failed", {"color": _GREY, "linewidth": 0.9, "zorder": 1, "marker": "x", "markersize": 5}
    name, color = ("finished", _BLUE) if trial.status == "finished" else ("not at its end", _GREY)
    return name, {"color": color, "linewidth": 1.1, "alpha": 0.6, "zorder": 2, "marker": ""}


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
    host.set_xticks(range(len(scales)), [_broken(scale.label) for scale in scales], fontsize=8, color=_INK)
    host.spines[:].set_visible(False)
    host.tick_params(length=0)
    for i, scale in enumerate(scales):
        axes = host.twinx()
        axes.set_ylim(host.get_ylim())
        axes.spines[:].set_visible(False)
        axes.spines["right"].set(visible=True, position=("data", i), bounds=(0, 1), color=_INK)
        axes.set_yticks(*zip(*scale.ticks, strict=True), fontsize=7, color=_INK)
        for text in axes.get_yticklabels():  # lines run behind them
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6})


def _broken(label: str) -> str:
    """A long label in two lines, so that it keeps clear of its neighbours."""
    return label if max(map(len, label.split("\n"))) <= 16 else label.replace(".", ".\n")


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def _shares(trials: Sequence[Trial], keys: Sequence[str], space: Space, objective: str) -> dict[str, float]:
    """Importance of each key over trials that have all of them; none where no split of the values separates the trials.

    The forest integrates over a parameter's range as it is given; for one that is searched by its logarithm that would be
    its top decade, so it gets the logarithm. Outlying values are moved to the edge: else they would be all that is explained.
    """
    logarithmic = {key for key in keys if space[key].kind == "loguniform"}
    domains = {key: _in_logarithm(space[key]) if key in logarithmic else distribution(space[key]) for key in keys}
    values = [trial.value(objective) for trial in trials]
    for maximise in (False, True):  # whichever is the bad side
        values, _ = _clipped(values, values, maximise)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study in memory for a moment is no news
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(level)
    for trial, value in zip(trials, values, strict=True):
        params = {key: math.log(trial.params[key]) if key in logarithmic else trial.params[key] for key in keys}
        study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=domains))
    try:
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=list(keys))
    except RuntimeError:  # of a forest without variance
        return {}
    return {key: share for key, share in found.items() if math.isfinite(share)}


def _in_logarithm(domain: Domain) -> BaseDistribution:
    low, high = domain.values
    return FloatDistribution(math.log(low), math.log(high))


def _bars(
    shares: dict[str, float], shared: Sequence[str], few: Sequence[str], labels: dict[str, str], title: str
) -> Figure:
    """Horizontal bars, the largest on top, and below them what their asterisks mean."""
    keys = sorted(shares, key=lambda key: shares[key])
    figure, axes = _one_panel((6.6, 1.6 + 0.32 * len(keys)))
    names = [labels[key] + ("" if key in shared else " *") for key in keys]
    bars = axes.barh(names, [shares[key] for key in keys], color=[_BLUE if key in shared else _PALE for key in keys])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color=_INK)
    notes = ["share of the explained differences"]
    if any(key not in shared for key in keys):
        notes.append("* conditional: among the trials that have it, against the parameters of all trials")
    if few:
        notes.append(f"in fewer than {FEWEST} trials, and left out: {', '.join(labels[key] for key in few)}")
    axes.set(xlim=(0, 1.08))
    axes.set_axisbelow(True)
    figure.supxlabel("\n".join(textwrap.fill(note, 100) for note in notes), fontsize=8, color=_INK)
    axes.set_title(title, fontsize=10, color=_INK)
    finish(figure)
    axes.grid(visible=False, axis="y")
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
            axes.set_title("beyond the edge, the step is as good as none", fontsize=9, color=_INK)
