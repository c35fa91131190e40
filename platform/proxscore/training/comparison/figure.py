"""Reliability and risk-coverage curves of all methods of a comparison in one figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from proxscore.calibration import reliability_bins
from proxscore.calibration.risk_coverage import risk_coverage
from proxscore.training.comparison import records
from proxscore.training.comparison.plan import Plan
from proxscore.training.comparison.table import Row

FEWEST = 20  # rows in a bin, of all seeds together, below which its accuracy is noise and left out


def draw(plan: Plan, table: Sequence[Row]) -> Figure:
    """Left: accuracy over confidence, bins of equal width with the rows of all seeds. Right: risk over coverage, mean over
    seeds. A method's colour is the same in both; dashed as it is given, solid tuned."""
    figure = Figure(figsize=(11.0, 5.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [contender.name for contender in plan.contenders]
    shades = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = [*shades[::2], *shades[1::2]]  # the dark ones first
    for row in table:
        seeds = [_rows(plan, row, seed) for seed in row.records]
        if not seeds:
            continue
        tuned = not row.contender.trials or row.label != row.contender.name
        style = {
            "color": colours[names.index(row.contender.name) % len(colours)],
            "linestyle": "-" if tuned else "--",
            "linewidth": 1.4 if tuned else 0.9,
            "label": row.label,
        }
        left.plot(*reliability(seeds, plan.config.evaluation.bins), marker="o", markersize=3, **style)
        coverage, risk = mean_risk(seeds)
        right.plot(coverage, risk, **style)
    left.plot([0, 1], [0, 1], color="#333333", linewidth=0.8, linestyle=":")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence of the most probable class", ylabel="accuracy")
    left.set_title("reliability", fontsize=10)
    right.set(
        xlim=(0, 1), xlabel="coverage: share of the rows, the most confident first", ylabel="risk: error among them"
    )
    right.set_ylim(bottom=0)
    right.set_title("risk-coverage", fontsize=10)
    for axes in (left, right):
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def _rows(plan: Plan, row: Row, seed: int) -> tuple[Tensor, Tensor]:
    """Confidence and correctness of every test row of a cell."""
    log_probabilities, targets = records.predictions(plan.cell(row.contender, str(row.setting), seed).folder)
    log_confidences, labels = log_probabilities.max(1)
    return log_confidences.exp().clamp(max=1.0).flatten(), (labels == targets).flatten()


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
