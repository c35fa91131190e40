"""Forecasts of all test origins of a data set by a saved posterior, whose targets are known: as one prediction, and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from proxscore.forecasting.prediction import SeriesPrediction
from proxscore.forecasting.predictor import SeriesPredictor
from proxscore.forecasting.series_task import SeriesTask


@dataclass(frozen=True)
class Rolling:
    """What a posterior says of windows whose targets are known.

    Attributes:
        prediction: of every window, in the order of series and origins.
        metrics: of them, those of calibrated intervals among them.
        by_horizon: coverage by step ahead, see :meth:`proxscore.calibration.interval_coverage.IntervalSums.by_horizon`; none:
            no level was calibrated.
    """

    prediction: SeriesPrediction
    metrics: dict[str, float]
    by_horizon: dict[str, Any] | None


def rolling(predictor: SeriesPredictor, draws: int | None = None, seed: int | None = None) -> Rolling:
    """Forecast from every test origin of the data that ``predictor.config`` names, by what lies before it.

    Args:
        draws, seed: as of :meth:`SeriesPredictor.predict`.

    Raises:
        ConfigError: the data cannot be read or split, or are not such as those of training.
    """
    draws, seed = predictor.chosen(draws, seed)
    task = SeriesTask(predictor.section, trained=predictor.trained)
    settings, device = predictor.config.evaluation, torch.device("cpu")
    predictive = predictor.predictive(task.data.test, draws, seed, settings.batch_size)
    metrics, _ = task.evaluator.evaluate(predictive, settings.bins, device, "")
    held, thresholds, by_horizon = predictor.calibration, None, None
    if held is not None and held.thresholds.levels:
        judged = held.judged(predictive, task.series, device)
        thresholds, by_horizon = judged.thresholds, judged.sums.by_horizon()
        metrics |= judged.sums.metrics()
    remarks = predictor.remarks_on(task.series, task.data.test, [], predictive)
    prediction = SeriesPrediction(
        draws,
        seed,
        predictive,
        task.series,
        held,
        thresholds,
        known=True,
        remarks=remarks,
        notes=(*predictor.notes, *predictor.told(remarks, draws)),
        verdict=predictor.verdict,
    )
    return Rolling(prediction, metrics, by_horizon)
