"""Many methods in one figure: reliability and risk-coverage curves of classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from proxscore.calibration.blank import blank
from proxscore.calibration.calibration_error import reliability_bins
from proxscore.calibration.risk_coverage import risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 20  # rows in a bin, of all seeds together, below which its accuracy is noise and left out


@dataclass(frozen=True)
class Curve:
    """One method of a comparison.

    Attributes:
        seeds: what its runs predicted, by name, as the task kept it.
        style: of its lines, and their ``label``: keywords of matplotlib.
    """

    seeds: list[dict[str, Tensor]]
    style: dict[str, Any]


def classification_curves(curves: Sequence[Curve], bins: int) -> Figure:
    """Left: accuracy over confidence, bins of equal width with the rows of all seeds. Right: risk over coverage, mean over
    seeds.

    Args:
        curves: whose seeds hold ``log_probabilities`` (N, C) and ``targets`` (N,).
    """
    figure = blank(11.0, 5.6)
    left, right = figure.subplots(1, 2)
    for curve in curves:
        seeds = [_rows(seed) for seed in curve.seeds]
        left.plot(*reliability(seeds, bins), marker="o", markersize=3, **curve.style)
        right.plot(*mean_risk(seeds), **curve.style)
    left.plot([0, 1], [0, 1], color="#333333", linewidth=0.8, linestyle=":")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence of the most probable class", ylabel="accuracy")
    left.set_title("reliability", fontsize=10)
    right.set(
        xlim=(0, 1), xlabel="coverage: share of the rows, the most confident first", ylabel="risk: error among them"
    )
    right.set_ylim(bottom=0)
    right.set_title("risk-coverage", fontsize=10)
    finish(figure)
    return figure


def finish(figure: Figure) -> None:
    """Grid, small ticks, and one legend below for all panels, whose curves have the same labels."""
    for axes in figure.axes:
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7, frameon=False)


def _rows(seed: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Confidence and correctness of every row."""
    log_confidences, labels = seed["log_probabilities"].max(1)
    return log_confidences.exp().clamp(max=1.0).flatten(), (labels == seed["targets"]).flatten()


def reliability(seeds: Sequence[tuple[Tensor, Tensor]], bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence and accuracy per bin, over the rows of all seeds; without bins of few rows."""
    confidences, correct = (torch.cat(values) for values in zip(*seeds, strict=True))
    table = reliability_bins(confidences, correct, bins=bins)
    kept = table.counts >= FEWEST
    return table.confidence[kept].numpy(), table.accuracy[kept].numpy()


def mean_risk(seeds: Sequence[tuple[Tensor, Tensor]], points: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Coverages, and the mean over seeds of the risk at them."""
    risks = torch.stack([risk_coverage(confidences, correct) for confidences, correct in seeds]).mean(0)
    kept = torch.linspace(0, len(risks) - 1, min(points, len(risks))).round().long()
    return ((kept + 1) / len(risks)).numpy(), risks[kept].numpy()
