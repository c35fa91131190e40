"""Figures of forecasts: fans of quantiles, the PIT histogram, coverage against its level, and scores by step ahead.

Each is a figure outside pyplot's state: nothing to close, and no display needed. ``figure.savefig(path)`` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from proxscore.calibration.blank import blank
from proxscore.calibration.comparison import Curve, finish
from proxscore.calibration.pit import chi_square
from proxscore.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _RED, _INK, _GRID = "#3b6fb6", "#d9534f", "#333333", "#e6e6e6"
_METHODS = ("#3b6fb6", "#d9534f", "#3a9a6e", "#e0972f", "#7d5ba6", "#4aa3b8", "#8c6d4f", "#777777")


def fan_chart(
    history: Tensor,
    targets: Tensor,
    quantiles: Tensor,
    probabilities: Sequence[float],
    *,
    names: Sequence[str],
    unit: str = "",
    title: str = "",
) -> Figure:
    """One panel per chosen window: its past, what happened, the median, and a band per central interval.

    Args:
        history: (P, T) past values, up to the origin of the forecast; NaN is missing.
        targets: (P, H) what happened; NaN is missing.
        quantiles: (P, Q, H), such as :func:`proxscore.calibration.sample_quantiles` gives (with Q first).
        probabilities: (Q,) of the quantiles, ascending: 0.5, and for every other p also 1 - p.
        names: (P,) titles of the panels: series and origin.
        unit: of the values, on the vertical axes.

    Raises:
        ConfigError: shapes that do not fit, or probabilities without the median or their counterparts.
    """
    panels, horizon = targets.shape
    wanted = (panels, len(probabilities), horizon)
    if tuple(quantiles.shape) != wanted or len(history) != panels or len(names) != panels or not panels:
        raise ConfigError(
            f"fan chart: history {tuple(history.shape)}, targets {tuple(targets.shape)}, quantiles "
            f"{tuple(quantiles.shape)} and {len(names)} names do not fit; wanted (P, T), (P, H), (P, Q, H) and P names"
        )
    mirrored = [abs(p + q - 1) < 1e-6 for p, q in zip(probabilities, reversed(probabilities), strict=True)]
    if len(probabilities) % 2 == 0 or not all(mirrored) or sorted(probabilities) != list(probabilities):
        raise ConfigError(f"fan chart: probabilities {list(probabilities)}; wanted 0.5 and pairs p, 1 - p, ascending")
    columns = min(panels, 2)
    rows = math.ceil(panels / columns)
    figure = blank(5.2 * columns, 2.6 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, past, target, fan, name in zip(grid.flat, history, targets, quantiles, names, strict=False):
        _draw_fan(axes, _array(past), _array(target), _array(fan), probabilities)
        axes.set_title(name, fontsize=9, color=_INK)
    for axes in grid.flat[panels:]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(unit)
    for axes in grid.flat[max(panels - columns, 0) : panels]:
        axes.set_xlabel("steps from the origin of the forecast")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11, color=_INK)
    return figure


def _draw_fan(
    axes: Axes, past: np.ndarray, target: np.ndarray, fan: np.ndarray, probabilities: Sequence[float]
) -> None:
    """The origin is between steps 0, the last of the past, and 1."""
    ahead, before = np.arange(1, len(target) + 1), np.arange(1 - len(past), 1)
    pairs = len(probabilities) // 2
    for i in range(pairs):
        level = f"{100 * (probabilities[-1 - i] - probabilities[i]):.3g}%"
        shade = 0.15 + 0.4 * i / pairs
        axes.fill_between(ahead, fan[i], fan[-1 - i], color=_BLUE, alpha=shade, linewidth=0, label=level)
    axes.plot(ahead, fan[pairs], color=_BLUE, linewidth=1.6, label="median")
    # Dots too: a value between two missing ones has no line.
    steps, values = np.concatenate([before, ahead]), np.concatenate([past, target])
    axes.plot(steps, values, color=_INK, linewidth=1.0, marker=".", markersize=2.5, label="observed")
    axes.axvline(0.5, color=_INK, linewidth=0.8, linestyle=":")
    axes.margins(x=0.01)
    _tidy(axes)


def pit_histogram(counts: Tensor, *, title: str = "") -> Figure:
    """Density of the PIT values per bin, relative to the uniform one; counts (bins,).

    High ends say that the predictive is too narrow, a high middle that it is too wide, a slope that it is biased: to the
    left, targets are lower than predicted. The band holds 95% of the bins of a calibrated predictive if steps are
    independent; dependent ones scatter more (:mod:`proxscore.calibration.pit`).

    Raises:
        ConfigError: all bins are empty.
    """
    statistic, pvalue = chi_square(counts)
    values = _array(counts)
    total, bins = values.sum(), len(values)
    from scipy import stats  # here: it takes seconds

    lower, upper = (stats.binom.ppf(p, total, 1 / bins) * bins / total for p in (0.025, 0.975))
    figure, axes = _one_panel(title)
    axes.bar(
        np.arange(bins) / bins,
        values * bins / total,
        1 / bins,
        align="edge",
        color=_BLUE,
        edgecolor="white",
        linewidth=0.8,
    )
    axes.axhspan(lower, upper, color=_INK, alpha=0.15, linewidth=0, label="95% of bins, if steps are independent")
    axes.axhline(1, color=_INK, linestyle="--", linewidth=1, label="calibrated")
    axes.set(xlim=(0, 1), xlabel="PIT: where the target lies in its predictive", ylabel="density")
    # Room for the legend above the bars.
    axes.set_ylim(0, 1.35 * max(values.max() * bins / total, upper))
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)
    text = f"chi² {statistic:,.1f}, p {pvalue:.2g}\nN  {int(total):,}"
    axes.text(0.97, 0.96, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=_INK)
    return figure


def coverage_against_nominal(
    levels: Sequence[float], coverage: Mapping[str, Sequence[float]], *, title: str = ""
) -> Figure:
    """How often central intervals cover the target, against the level they claim: a line per method.

    Below the diagonal a predictive is over-confident.

    Args:
        levels: (L,) nominal levels, between 0 and 1.
        coverage: for each method the (L,) fractions of targets within its intervals.

    Raises:
        ConfigError: no method, or one with another number of levels.
    """
    if not coverage:
        raise ConfigError("coverage: there is no method to draw")
    figure, axes = _one_panel(title, size=(4.6, 4.6))
    axes.plot([0, 1], [0, 1], color=_INK, linestyle="--", linewidth=1, label="calibrated")
    order = np.argsort(levels)
    for i, (method, values) in enumerate(coverage.items()):
        if len(values) != len(levels):
            raise ConfigError(f"coverage: {method} has {len(values)} values for {len(levels)} levels")
        axes.plot(
            np.asarray(levels)[order],
            np.asarray(values)[order],
            color=_METHODS[i % len(_METHODS)],
            marker="o",
            markersize=5,
            linewidth=1.4,
            label=method,
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", xlabel="nominal level", ylabel="fraction covered")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)
    return figure


def error_by_horizon(
    curves: Mapping[str, Mapping[str, Tensor]], *, metrics: Sequence[str] = ("crps", "mae"), title: str = ""
) -> Figure:
    """Metrics for each step ahead: a panel per metric, a line per method.

    Args:
        curves: for each method its (H,) values by metric, as :meth:`proxscore.calibration.ForecastMetrics.by_horizon`
            gives them; NaN leaves a gap.
        metrics: which to draw.

    Raises:
        ConfigError: no method, or a metric that a method does not have.
    """
    if not curves or not metrics:
        raise ConfigError("error by horizon: there is no method or no metric to draw")
    for method, values in curves.items():
        for metric in metrics:
            if metric not in values:
                raise ConfigError(f"error by horizon: {method} has no metric {metric}; it has {', '.join(values)}")
    figure = blank(4.6 * len(metrics), 3.4)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for i, (method, values) in enumerate(curves.items()):
            heights = _array(values[metric])
            # Dots only where they do not run into each other.
            marker = "." if len(heights) <= 60 else ""
            color = _METHODS[i % len(_METHODS)]
            axes.plot(np.arange(1, len(heights) + 1), heights, color=color, marker=marker, linewidth=1.4, label=method)
        axes.set(xlabel="steps ahead", ylabel=metric, xlim=(0, None))
        # From zero: a rise of a tenth is to look like one.
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), None)
        _tidy(axes)
    axes.legend(fontsize=8, framealpha=0.9)
    if title:
        figure.suptitle(title, fontsize=11, color=_INK)
    return figure


def compared_forecasts(curves: Sequence[Curve]) -> Figure:
    """Left: coverage of central intervals against their level. Right: CRPS by step ahead. Means over seeds.

    Args:
        curves: whose seeds hold ``levels`` and ``coverage`` (L,) and ``crps`` (H,).
    """
    figure = blank(11.0, 5.6)
    left, right = figure.subplots(1, 2)
    for curve in curves:
        coverage, crps = (torch.stack([seed[name] for seed in curve.seeds]).mean(0) for name in ("coverage", "crps"))
        left.plot(_array(curve.seeds[0]["levels"]), _array(coverage), marker="o", markersize=3, **curve.style)
        right.plot(np.arange(1, len(crps) + 1), _array(crps), **curve.style)
    left.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":")
    left.set(xlim=(0.4, 1), ylim=(0, 1), xlabel="level of the interval", ylabel="targets that lie in it")
    left.set_title("coverage", fontsize=10)
    right.set(xlabel="steps ahead", ylabel="CRPS, in the unit of the target")
    right.set_ylim(bottom=0)
    right.set_title("error by horizon", fontsize=10)
    finish(figure)
    return figure


def _one_panel(title: str, *, size: tuple[float, float] = (5.0, 3.4)) -> tuple[Figure, Axes]:
    figure = blank(*size)
    axes = figure.subplots()
    if title:
        axes.set_title(title, fontsize=11, color=_INK)
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
