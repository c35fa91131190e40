"""The reliability diagram: accuracy against confidence, the gap between them, and how many rows each bar stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from proxscore.calibration.blank import blank
from proxscore.calibration.calibration_error import (
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACCURACY, _GAP, _INK = "#3b6fb6", "#d9534f", "#333333"


def reliability_diagram(confidences: Tensor, correct: Tensor, *, bins: int = 15, title: str = "") -> Figure:
    """A figure of two panels over the confidence of the most probable class, in ``bins`` bins of equal width.

    Above, a bar per bin at its accuracy and, hatched, the gap from there to its mean confidence (the term that ECE adds
    up: below the diagonal the predictive is over-confident); below, the rows per bin on a logarithmic axis. ECE, MCE
    and N stand in the figure. The style is that of Guo et al. (2017), "On calibration of modern neural networks".

    Args:
        confidences: (N,) probability of the most probable class, in [0, 1].
        correct: (N,) true where that class is the label.

    Returns:
        A figure outside pyplot's state: nothing to close, and no display needed. ``figure.savefig(path)`` writes it.

    Raises:
        ConfigError: as :func:`proxscore.calibration.reliability_bins`.
    """
    table = reliability_bins(confidences, correct, bins=bins)
    edges, counts, accuracy, confidence = (
        values.cpu().numpy() for values in (table.edges, table.counts, table.accuracy, table.confidence)
    )
    figure = blank(5.0, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    if title:
        above.set_title(title, fontsize=11, color=_INK)
    _draw_accuracy(above, edges, accuracy, confidence)
    _draw_counts(below, edges, counts)
    ece = expected_calibration_error(confidences, correct, bins=bins)
    mce = maximum_calibration_error(confidences, correct, bins=bins)
    above.text(
        0.97,
        0.04,
        f"ECE  {ece:.4f}\nMCE  {mce:.4f}\nN  {int(counts.sum()):,}",
        transform=above.transAxes,
        ha="right",
        va="bottom",
        fontsize=9,
        color=_INK,
        bbox={"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "#cccccc", "alpha": 0.9},
    )
    return figure


def _draw_accuracy(axes: Axes, edges: np.ndarray, accuracy: np.ndarray, confidence: np.ndarray) -> None:
    """One bar per bin that holds rows, its gap on top of it, and the diagonal of perfect calibration."""
    filled = ~np.isnan(accuracy)
    lefts, widths = edges[:-1][filled], np.diff(edges)[filled]
    accuracy, gap = accuracy[filled], (confidence - accuracy)[filled]
    axes.bar(lefts, accuracy, widths, align="edge", color=_ACCURACY, edgecolor="white", linewidth=0.8)
    axes.bar(
        lefts,
        gap,
        widths,
        bottom=accuracy,
        align="edge",
        facecolor="#f8dcdb",
        edgecolor=_GAP,
        hatch="////",
        linewidth=0.8,
        label="gap to mean confidence",
    )
    # Where confidence is below accuracy the gap covers the top of its bar; the line says where the accuracy is.
    axes.hlines(accuracy, lefts, lefts + widths, color=_INK, linewidth=1.8, label="accuracy")
    axes.plot([0, 1], [0, 1], linestyle="--", color=_INK, linewidth=1, label="perfect calibration")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)
    _tidy(axes)


def _draw_counts(axes: Axes, edges: np.ndarray, counts: np.ndarray) -> None:
    """Rows per bin. Logarithmic: a good classifier puts most rows into the last bin, and the gaps are in the others."""
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color="#8c9bb0", edgecolor="white", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(0.5, 3 * counts.max())
    axes.set(xlabel="confidence of the most probable class", ylabel="rows")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=_INK)
