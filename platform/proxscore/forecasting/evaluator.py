"""The evaluation of probabilistic forecasts: metrics, fan charts, PIT, coverage, and the simple methods that they must beat."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from proxscore.calibration.comparison import Curve
from proxscore.calibration.forecast_figures import (
    compared_forecasts,
    coverage_against_nominal,
    error_by_horizon,
    fan_chart,
    pit_histogram,
)
from proxscore.calibration.forecasting import ForecastMetrics
from proxscore.calibration.interval_coverage import coverage_by_horizon
from proxscore.forecasting.intervals import KEY, Intervals
from proxscore.forecasting.likelihoods.excluded import remark
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.splits import season_errors
from proxscore.tasks import Evaluator
from proxscore.tasks.baselines import BestBaseline
from proxscore.tasks.evaluator import Corrected, Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from proxscore.forecasting.baselines import Judged
    from proxscore.forecasting.series_task import SeriesTask

log = logging.getLogger(__name__)
UNLIKE = 0.05  # share of windows unlike those of training, above which a line says so
JUMPS = (
    "single values (counts, zeros) have a probability: the coverage of intervals, whose ends count, is above their level even if "
    "forecasts are right"
)
FANS = 4  # series in the fan chart
FAN = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


class ForecastEvaluator(Evaluator):
    """Metrics and figures of forecasts.

    Args:
        task: whose series and windows are forecast.
    """

    headline: tuple[str, ...] = ("crps", "nll", "mase", "coverage_90")
    columns: Sequence[tuple[str, str, int]] = (
        ("CRPS", "crps", 4),
        ("wQL", "mean_weighted_quantile_loss", 4),
        ("NLL", "nll", 4),
        ("MASE", "mase", 3),
        ("sMAPE", "smape", 2),
        ("MSIS", "msis", 2),
        ("coverage 50", "coverage_50", 3),
        ("coverage 80", "coverage_80", 3),
        ("coverage 90", "coverage_90", 3),
        ("coverage 95", "coverage_95", 3),
        ("width 90", "width_90", 2),
        ("coverage 90, calibrated", "calibrated/coverage_90", 3),
        ("width 90, calibrated", "calibrated/width_90", 2),
        ("epistemic sd", "epistemic_sd", 3),
        ("unlike training", "unlike_training", 3),
    )
    objectives: Mapping[str, bool] = dict.fromkeys(
        ("crps", "nll", "mean_weighted_quantile_loss", "mase", "smape", "msis", "mae", "mse"), False
    )

    def __init__(self, task: SeriesTask) -> None:
        self.task = task
        self.season_errors = torch.from_numpy(season_errors(task.series, task.splits))
        self._told: set[tuple[str, ...]] = set()

    def evaluate(
        self, predictive: ForecastPredictive, bins: int, device: torch.device, title: str
    ) -> tuple[dict[str, float], Figures]:
        """Metrics over all ranks' windows, and fan charts (of this rank's), PIT, coverage and errors by step ahead.

        Args:
            bins: of the PIT histogram.
        """
        metrics = self._metrics(predictive, bins, device)
        values = metrics.compute() | self._unlike(predictive, device)
        self._tell_undefined(values)
        self._tell_once(None if predictive.likelihood.continuous else JUMPS)
        self._tell_once(remark(self.task.likelihood_name, predictive.likelihood, self.task.series, predictive.targets))
        return values, lambda: {
            "fans": self._fans(predictive, title),
            "pit": pit_histogram(metrics.pit_counts, title=title),
            "coverage": coverage_against_nominal(
                metrics.levels, {"predictive": _coverage(metrics, values)}, title=title
            ),
            "errors": error_by_horizon({"predictive": metrics.by_horizon()}, title=title),
        }

    def _unlike(self, predictive: ForecastPredictive, device: torch.device) -> dict[str, float]:
        """``unlike_training``: the share of all ranks' windows whose past is unlike those of training; said where it is large."""
        if predictive.unlike is None:
            return {}
        mean = MeanMetric(nan_strategy="disable").to(device)
        if len(predictive.unlike):
            mean.update(predictive.unlike.double().to(device))
        share = float(mean.compute())
        line = f"{share:.0%} of these windows have a past unlike those of training: what is forecast of them is a guess"
        self._tell_once(line if share > UNLIKE else None)
        return {"unlike_training": share}

    @property
    def corrects(self) -> bool:
        return self.task.config.conformal.kind != "none"

    def correction(self, validation: ForecastPredictive, device: torch.device) -> dict[str, Any]:
        """Thresholds of calibrated intervals, by ``task.conformal``; which levels have too few windows is said once."""
        task = self.task
        found = Intervals.calibrated(task.config.conformal, validation, task.series, task.context, device)
        lacking = found.refusal(list(found.thresholds.refused))
        self._tell_once(lacking)
        return {KEY: found.as_json()}

    def corrected(
        self, predictive: ForecastPredictive, correction: Mapping[str, Any], device: torch.device, title: str
    ) -> Corrected:
        """Metrics ``calibrated/coverage_90, calibrated/width_90, calibrated/winkler_90``, and coverage by step ahead."""
        if KEY not in correction:  # the posterior was saved without
            return Corrected()
        saved = Intervals.of_json(correction[KEY], self.task.config.horizon, "the posterior's description")
        if not saved.thresholds.levels:
            return Corrected(saved={KEY: saved.as_json()})
        judged = saved.judged(predictive, self.task.series, device)
        details = judged.sums.by_horizon()
        return Corrected(
            judged.sums.metrics(),
            lambda: {"coverage_by_horizon": coverage_by_horizon(details, title=title)},
            details,
            {KEY: judged.after.as_json()},
        )

    def _tell_once(self, line: str | None) -> None:
        if line is not None and (line,) not in self._told:
            self._told.add((line,))
            log.warning("%s", line)

    def _tell_undefined(self, values: dict[str, float]) -> None:
        """Say, once, which metrics are left out, and why."""
        missing = tuple(name for name in self.objectives if name not in values)
        if missing and missing not in self._told:
            self._told.add(missing)
            why = "no target of these windows is observed"
            if values["observed_steps"]:
                why = "the past of these series is constant, which gives no scale, or their targets are all 0"
            log.warning("undefined, and left out: %s (%s)", ", ".join(missing), why)

    def compared(self, predictive: ForecastPredictive) -> tuple[dict[str, float], dict[str, Tensor]]:
        """No more metrics; coverage by level, and CRPS by step ahead."""
        metrics = self._metrics(predictive, 10, torch.device("cpu"))
        values = metrics.compute()
        return {}, {
            "levels": torch.tensor(metrics.levels),
            "coverage": torch.tensor(_coverage(metrics, values)),
            "crps": metrics.by_horizon()["crps"],
        }

    def baselines(self) -> dict[str, ForecastPredictive]:
        """Forecasts of the test windows by the methods that ``task.baselines`` names, or that are quick."""
        return {fitted.label: fitted.predictive(self.task.data.test) for fitted in self._judged.fitted}

    def best_baseline(self, show: Callable[[str], None]) -> BestBaseline | None:
        """The best of these methods by CRPS of the validation windows."""
        if self.task.config.baselines != []:
            show("baselines  judging what needs no training (task.baselines)")
        return self._judged.best(self.task.splits, self.season_errors.tolist())

    @cached_property
    def _judged(self) -> Judged:
        from proxscore.forecasting.baselines import History, judge, seasons

        data, splits = self.task.series, self.task.splits
        history = History(
            [each.target for each in data.series],
            [split.train_end for split in splits],
            self.task.config.horizon,
            seasons(data.frequency, data.season),
            self.task.unit,
        )
        return judge(history, splits, self.task.config.baselines)

    def comparison_figure(self, curves: Sequence[Curve], bins: int) -> Figure:
        """Coverage against the nominal level, and CRPS by step ahead; means over seeds."""
        return compared_forecasts(curves)

    def _metrics(self, predictive: ForecastPredictive, bins: int, device: torch.device) -> ForecastMetrics:
        metrics = ForecastMetrics(self.task.config.horizon, len(self.task.series.series), bins=max(bins, 2)).to(device)
        for chunk in predictive.chunks():
            values, observed, series, _ = chunk.targets.unbind(1)
            series = series[:, 0].long()
            metrics.update(
                chunk.samples,
                values,
                observed,
                quantiles=None if chunk.steps is None else chunk.steps.quantiles,
                cdf=chunk.cdf,
                season_error=self.season_errors[series],
                series=series,
                log_density=chunk.log_density,
                mean=chunk.mean,
                aleatoric=chunk.aleatoric,
                epistemic=chunk.epistemic,
            )
        return metrics

    def _fans(self, predictive: ForecastPredictive, title: str) -> Figure:
        """The last window of some series, evenly spaced."""
        numbers = predictive.targets[:, 2, 0].long()
        last = {int(number): row for row, number in enumerate(numbers)}
        chosen = [last[key] for key in sorted(last)]
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(FANS, len(chosen))).astype(int)]
        part = predictive.part(chosen)
        (chunk,) = part.chunks()
        values, observed, series, origins = chunk.targets.unbind(1)
        past = []
        for number, origin in zip(series[:, 0].long().tolist(), origins[:, 0].long().tolist(), strict=True):
            target = torch.from_numpy(
                self.task.series.series[number].target[max(0, origin - self.task.context) : origin]
            )
            past.append(torch.cat([target.new_full((self.task.context - len(target),), torch.nan), target]))
        return fan_chart(
            torch.stack(past),
            torch.where(observed > 0, values, torch.nan),
            chunk.quantiles(FAN).float().movedim(0, 1),
            FAN,
            names=[self.task.series.series[number].id for number in series[:, 0].long().tolist()],
            title=title,
        )


def _coverage(metrics: ForecastMetrics, values: dict[str, float]) -> list[float]:
    """The empirical coverage of each central interval, by its level."""
    return [values.get(f"coverage_{100 * level:g}", math.nan) for level in metrics.levels]
