"""Which anchor a network starts from: the one whose own forecasts of the validation windows have the least CRPS."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from proxscore.calibration.crps import crps_gaussian
from proxscore.forecasting.anchors import Anchor, GivenAnchor, LinearAnchor
from proxscore.forecasting.baselines import BASELINES, History
from proxscore.forecasting.baselines.baseline import Baseline
from proxscore.forecasting.baselines.judging import scores
from proxscore.forecasting.splits import Split
from proxscore.forecasting.windows import Windows

SECONDS = 200.0  # about so many on one core, that forecasts of all training windows may take


class Forecasts:
    """Forecasts of windows by a method that is fitted series by series, each made once, when it is first asked for.

    Args:
        baseline: fitted.
    """

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self._found: dict[tuple[int, int], NDArray[np.float32]] = {}

    def __call__(self, number: int, origin: int) -> NDArray[np.float32]:
        """(H, 2) means and standard deviations of a series' steps from an origin on, in the target's unit."""
        found = self._found.get((number, origin))
        if found is None:
            mean, spread = self.baseline(number, np.array([origin]))
            found = (self.baseline.history.unit * np.stack([mean[0], spread[0]], -1)).astype(np.float32)
            self._found[number, origin] = found
        return found


@dataclass(frozen=True)
class Choice:
    """An anchor, what its own forecasts of the validation windows are worth, and what gives it those that it does not make."""

    anchor: Anchor
    crps: float
    forecasts: Forecasts | None = None

    @property
    def name(self) -> str:
        """Its setting."""
        return self.anchor.method if isinstance(self.anchor, GivenAnchor) else "linear"

    @property
    def label(self) -> str:
        """Its setting, and the season of a method."""
        return f"{self.name}, {self.anchor.season}" if isinstance(self.anchor, GivenAnchor) else self.name


def told(choices: Sequence[Choice]) -> str:
    """Which is the best, and why, in a line."""
    best, *others = sorted(choices, key=lambda choice: choice.crps)
    beside = "".join(f"; {each.label}: {each.crps:,.4g}" for each in others)
    why = f"whose forecasts of the validation windows have a CRPS of {best.crps:,.4g}{beside}"
    return f"anchor {best.label} (task.model.anchor), {why}"


def linear_choice(anchor: LinearAnchor, validation: Windows, unit: float) -> Choice:
    """Judge a regression by the validation windows, as a Gaussian."""
    return Choice(anchor, _crps(anchor, validation, unit))


def given_choice(
    anchor: GivenAnchor, history: History, splits: Sequence[Split], windows: int, limit: float | None = SECONDS
) -> Choice | None:
    """Judge a method at its best season by the validation windows; none: all its forecasts would take too long.

    Args:
        anchor: says the method.
        windows: of training.
        limit: seconds; without, it may take any time.
    """
    method, best = BASELINES[anchor.method], None
    for season in history.lengths:
        if limit is not None and method.seconds(history, season, windows) > limit:
            continue
        baseline = method(history, season)
        crps = float(scores(baseline, [split.validation for split in splits], None).get("crps", np.inf))
        if best is None or crps < best.crps:
            chosen = copy.deepcopy(anchor)
            chosen.season = season
            best = Choice(chosen, crps, Forecasts(baseline))
    return best


def _crps(anchor: Anchor, windows: Windows, unit: float, batch: int = 512) -> float:
    """Mean over the observed steps, in the target's unit."""
    total, count = 0.0, 0.0
    for first in range(0, len(windows), batch):
        inputs, targets = windows.__getitems__(range(first, min(first + batch, len(windows))))
        fields = windows.panel.packing.unpack(inputs)
        fields |= {"past_target": fields["past_target"] / unit}
        with torch.no_grad():
            found = anchor(fields)
        mean, spread = found.level + found.scale * found.path, found.scale * found.spread
        each = crps_gaussian(unit * mean.double(), unit * spread.double(), targets[:, 0].double())
        seen = targets[:, 1] > 0
        total, count = total + float(each[seen].sum()), count + float(seen.sum())
    return total / count if count else float("inf")


def given_forecasts(anchor: Anchor | None, history: History) -> Forecasts | None:
    """What gives an anchor its forecasts, fitted anew to these series; none: it makes them itself."""
    if not isinstance(anchor, GivenAnchor):
        return None
    return Forecasts(BASELINES[anchor.method](history, anchor.season))
