"""Baselines beside a network: each at the season that the validation windows prefer, and the best of them by CRPS there.

Windows are forecast series by series; what is kept are sums. A baseline that fails as a whole is told, and hides no other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proxscore.forecasting.baselines.baseline import Baseline
from proxscore.forecasting.baselines.history import History, Origins
from proxscore.forecasting.baselines.names import BASELINES, QUICK, SECONDS
from proxscore.forecasting.baselines.scores import Scores
from proxscore.forecasting.distributions import Normal
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.splits import Split
from proxscore.forecasting.windows import Windows
from proxscore.tasks.baselines import BestBaseline

log = logging.getLogger(__name__)
CHOICE = 20_000  # validation windows at most that a season, and the best, are chosen by: evenly spaced ones


@dataclass(frozen=True)
class Fitted:
    """A baseline at one season.

    Attributes:
        kind: a key of ``BASELINES``.
        label: what tables call it, with the season where several were tried.
        validation: mean CRPS of the validation windows; infinite where they have no observed target.
    """

    kind: str
    label: str
    baseline: Baseline
    validation: float

    def scores(self, splits: Sequence[Split], errors: Sequence[float]) -> dict[str, float]:
        """Metrics of the test windows.

        Args:
            errors: the scale of MASE of each series.
        """
        found = scores(self.baseline, [split.test for split in splits], errors)
        self.tell()
        return found

    def predictive(self, windows: Windows) -> ForecastPredictive:
        """Of the windows in their order."""
        index, history = windows.index, self.baseline.history
        outputs = torch.empty(1, len(index), history.horizon, 2)
        for number in np.unique(index[:, 0]).tolist():
            rows = np.flatnonzero(index[:, 0] == number)
            pair = np.stack(self.baseline(number, index[rows, 1]), -1)
            outputs[0, rows] = torch.from_numpy(history.unit * pair).float()
        self.tell()
        return ForecastPredictive(Normal(), outputs, None, windows.__getitems__(range(len(windows)))[1])

    def tell(self) -> None:
        """Say on how many series another forecast stands in."""
        if failed := len(self.baseline.failed):
            log.warning(
                "%s with season %d fails on %d of %d series: the seasonal naive forecast stands in",
                *(self.kind, self.baseline.season, failed, len(self.baseline.history)),
            )


@dataclass(frozen=True)
class Judged:
    """The baselines that ran, each at its best season, and what to say of those that did not."""

    fitted: list[Fitted]
    notes: list[str]

    def best(self, splits: Sequence[Split], errors: Sequence[float]) -> BestBaseline | None:
        """The one with the least CRPS of the validation windows, and its metrics of the test windows; none: none ran."""
        if not self.fitted:
            return BestBaseline("", {}, {}, tuple(self.notes)) if self.notes else None
        first = min(self.fitted, key=lambda each: each.validation)
        if not np.isfinite(first.validation):
            return BestBaseline(
                "", {}, {}, (*self.notes, "no target of the validation windows is observed: none is the best")
            )
        order = {each.label: each.validation for each in sorted(self.fitted, key=lambda each: each.validation)}
        return BestBaseline(first.label, order, first.scores(splits, errors), tuple(self.notes))


def judge(history: History, splits: Sequence[Split], kinds: Sequence[str] | None) -> Judged:
    """Fit baselines, and choose the season of each by the validation windows.

    Args:
        kinds: keys of ``BASELINES``; none: those that are quick, and the others as far as ``SECONDS`` go.
    """
    windows = sum(len(split.validation) + len(split.test) for split in splits)
    wanted = [(kind, length) for kind in (QUICK if kinds is None else kinds) for length in _lengths(kind, history)]
    notes = []
    if kinds is None:
        wanted, left = _affordable(wanted, history, windows)
        if left:
            names = ",".join(dict.fromkeys(kind for kind, _, _ in left))
            texts = [f"{BASELINES[k].title}, season {m} (about {_duration(seconds)})" for k, m, seconds in left]
            notes.append(f"left out, as slow: {'; '.join(texts)}: task.baselines=[{names}] runs them")
    best, failures = best_of_each(history, [split.validation for split in splits], wanted)
    return Judged(best, notes + failures)


def best_of_each(
    history: History, validation: Sequence[Origins], wanted: Sequence[tuple[str, int]]
) -> tuple[list[Fitted], list[str]]:
    """Each kind at its best season, in the order that they are wanted in, and a line for each that failed.

    Args:
        validation: origins of each series.
        wanted: kinds, and seasons of each.
    """
    thinned, found, notes = thin(validation, CHOICE), dict[str, list[Fitted]](), []
    tried = {kind: sum(other == kind for other, _ in wanted) for kind, _ in wanted}
    for kind, length in wanted:
        title = BASELINES[kind].title
        several = tried[kind] > 1 or (BASELINES[kind].every_season and len(history.lengths) > 1)
        label = f"{title}, {length}" if several else title
        try:
            baseline = BASELINES[kind](history, length)
            crps = scores(baseline, thinned, None).get("crps", np.inf)
        except Exception as error:  # whatever it is: a baseline is beside the result, and must not cost it
            log.debug("the baseline %s failed", label, exc_info=True)
            notes.append(f"{label} failed: {' '.join(str(error).split()) or type(error).__name__}")
            continue
        found.setdefault(kind, []).append(Fitted(kind, label, baseline, float(crps)))
    return [min(each, key=lambda one: one.validation) for each in found.values()], notes


def scores(baseline: Baseline, origins: Sequence[Origins], errors: Sequence[float] | None) -> dict[str, float]:
    """Means over the windows of all series, in the units of the data.

    Args:
        errors: the scale of MASE of each series.
    """
    history, total = baseline.history, Scores()
    for number, starts in enumerate(origins):
        if len(starts):
            mean, spread = baseline(number, starts)
            values = history.targets[number][starts[:, None] + np.arange(history.horizon)]
            scale = np.nan if errors is None else errors[number]
            total.add(history.unit * mean, history.unit * spread, history.unit * values, scale)
    return total.means()


def thin(origins: Sequence[Origins], most: int) -> list[Origins]:
    """At most so many origins, evenly spaced over all series together."""
    total = sum(len(each) for each in origins)
    if total <= most:
        return list(origins)
    chosen = np.zeros(total, bool)
    chosen[np.linspace(0, total - 1, most).round().astype(int)] = True
    return [each[part] for each, part in zip(origins, _parts(chosen, origins), strict=True)]


def _parts(values: np.ndarray, like: Sequence[Origins]) -> Iterator[np.ndarray]:
    return iter(np.split(values, np.cumsum([len(each) for each in like])[:-1]))


def _lengths(kind: str, history: History) -> list[int]:
    return history.lengths if BASELINES[kind].every_season else history.lengths[:1]


def _affordable(
    wanted: Sequence[tuple[str, int]], history: History, windows: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int, float]]]:
    """What runs within ``SECONDS``, the quickest first, and what does not, with its seconds."""
    costs = {each: BASELINES[each[0]].seconds(history, each[1], windows) for each in wanted}
    spent, chosen = 0.0, set()
    for each in sorted(wanted, key=lambda one: costs[one]):
        spent += costs[each]
        if spent <= SECONDS or not costs[each]:
            chosen.add(each)
    return [e for e in wanted if e in chosen], [(*e, costs[e]) for e in wanted if e not in chosen]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} minutes"
