"""How often intervals of forecasts cover the target, by step ahead, before and after calibration, with binomial errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from proxscore.calibration.blank import blank
from proxscore.calibration.quantiles import interval_score
from proxscore.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIDENCE = 0.95  # of the bands of a coverage
_Z = 1.959963984540054  # its normal quantile
_COLORS, _INK, _GRID = {"before": "#8c9bb0", "after": "#3b6fb6"}, "#333333", "#e6e6e6"
_LABELS = {"before": "the model's own", "after": "calibrated"}


def wilson(share: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of Wilson's score interval (1927) of a share of so many independent trials, at 95%; NaN without trials.

    ((p + z²/2n) ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n). Windows that overlap in time, or are of series that move
    together, are not independent: their band should be wider.
    """
    share, count = share.double(), count.double()
    middle = share + _Z**2 / (2 * count)
    half = _Z * (share * (1 - share) / count + (_Z / (2 * count)) ** 2).sqrt()
    below = 1 + _Z**2 / count
    lower, upper = (middle - half) / below, (middle + half) / below
    return lower.where(count > 0, torch.nan), upper.where(count > 0, torch.nan)


@dataclass(frozen=True)
class IntervalSums:
    """Sums over windows, float64.

    Attributes:
        levels: of the intervals.
        before, after: (3, L, H), targets covered, widths and Winkler scores of the predictive's own and of calibrated intervals.
        steps: (H,) targets that were observed.
    """

    levels: tuple[float, ...]
    before: Tensor
    after: Tensor
    steps: Tensor

    @classmethod
    def of(
        cls,
        levels: Sequence[float],
        own: tuple[Tensor, Tensor],
        calibrated: tuple[Tensor, Tensor],
        targets: Tensor,
        observed: Tensor,
    ) -> IntervalSums:
        """Of windows with intervals (L, n, H), targets (n, H), and whether these were observed, (n, H) bool."""
        targets = torch.where(observed, targets.double(), 0.0)
        sums = []
        for lower, upper in (own, calibrated):
            held = (lower <= targets) & (targets <= upper)
            ends = zip(lower, upper, levels, strict=True)
            winkler = [interval_score(low, high, targets, level) for low, high, level in ends]
            terms = torch.stack([held.double(), upper - lower, torch.stack(winkler)])
            sums.append(torch.where(observed, terms, 0.0).sum(2))
        return cls(tuple(levels), sums[0], sums[1], observed.double().sum(0))

    @classmethod
    def zeros(cls, levels: Sequence[float], horizon: int) -> IntervalSums:
        """Of no windows."""
        none = torch.zeros(3, len(levels), horizon, dtype=torch.float64)
        return cls(tuple(levels), none, none, none.new_zeros(horizon))

    def __add__(self, other: IntervalSums) -> IntervalSums:
        """Over the windows of both."""
        before, after = self.before + other.before, self.after + other.after
        return IntervalSums(self.levels, before, after, self.steps + other.steps)

    def reduced(self, device: torch.device) -> IntervalSums:
        """The sums over all ranks of the default group. A collective.

        Args:
            device: that the group can reduce on.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        parts = (self.before, self.after, self.steps)
        flat = torch.cat([part.flatten() for part in parts]).to(device)
        dist.all_reduce(flat)
        before, after, steps = flat.cpu().split([part.numel() for part in parts])
        return IntervalSums(self.levels, before.view_as(self.before), after.view_as(self.after), steps)

    def metrics(self) -> dict[str, float]:
        """``calibrated/coverage_L, calibrated/width_L, calibrated/winkler_L`` over all steps; none without an observed one."""
        total = float(self.steps.sum())
        if not total:
            return {}
        return {
            f"calibrated/{name}_{100 * level:g}": float(self.after[row, place].sum()) / total
            for row, name in enumerate(("coverage", "width", "winkler"))
            for place, level in enumerate(self.levels)
        }

    def by_horizon(self) -> dict[str, Any]:
        """As JSON: ``steps`` observed at each step ahead, and by level the coverage ``before`` and ``after`` calibration, each
        with the ends ``lower`` and ``upper`` of its Wilson interval; null where no target was observed."""
        found: dict[str, Any] = {"confidence": CONFIDENCE, "steps": self.steps.long().tolist(), "levels": {}}
        for place, level in enumerate(self.levels):
            found["levels"][f"{level:g}"] = {
                name: self._coverage(sums[0, place]) for name, sums in (("before", self.before), ("after", self.after))
            }
        return found

    def _coverage(self, covered: Tensor) -> dict[str, list[float | None]]:
        share = covered / self.steps
        lower, upper = wilson(share, self.steps)
        parts = {"coverage": share, "lower": lower, "upper": upper}
        return {name: [None if math.isnan(v) else v for v in values.tolist()] for name, values in parts.items()}


def coverage_by_horizon(found: dict[str, Any], *, title: str = "") -> Figure:
    """Coverage at each step ahead, a panel per level: the model's own intervals, calibrated ones, and their Wilson bands.

    Args:
        found: what :meth:`IntervalSums.by_horizon` gave.

    Raises:
        ConfigError: there is no level.
    """
    levels = found["levels"]
    if not levels:
        raise ConfigError("coverage by horizon: there is no level to draw")
    columns = min(len(levels), 2)
    rows = math.ceil(len(levels) / columns)
    figure = blank(4.8 * columns, 2.9 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (level, parts) in zip(grid.flat, levels.items(), strict=False):
        for name, color in _COLORS.items():
            values = {key: np.array(each, dtype=float) for key, each in parts[name].items()}
            ahead = np.arange(1, len(values["coverage"]) + 1)
            axes.fill_between(ahead, values["lower"], values["upper"], color=color, alpha=0.2, linewidth=0)
            marker = "." if len(ahead) <= 60 else ""
            axes.plot(ahead, values["coverage"], color=color, marker=marker, linewidth=1.4, label=_LABELS[name])
        axes.axhline(float(level), color=_INK, linestyle="--", linewidth=1, label="level")
        lowest = min([float(level), *(v for part in parts.values() for v in part["lower"] if v is not None)])
        axes.set(ylim=(max(0.0, lowest - 0.05), 1.03), xlabel="steps ahead", ylabel="fraction covered")
        axes.set_title(f"{100 * float(level):g}% intervals", fontsize=9, color=_INK)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=_INK)
    for axes in grid.flat[len(levels) :]:
        axes.set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=11, color=_INK)
    return figure
