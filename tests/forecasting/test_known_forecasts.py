"""Panels whose best forecasts are known in closed form: a network with default settings comes near the best possible CRPS.

All but one are Gaussian processes, so that the best forecast is the normal distribution given the context; the intermittent one
has counts of a gamma-distributed rate for each series, and its best forecast is the negative binomial given the context. No
forecast has a lower CRPS but by chance. Both are judged on the same windows; the error of their ratio is that of a mean over
series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from proxscore import config as configuration
from proxscore.calibration.crps import crps_gaussian
from proxscore.forecasting.evaluator import ForecastPredictive
from proxscore.forecasting.series_task import SeriesTask
from proxscore.posterior import Posterior
from proxscore.training.data.batches import evaluation_batches
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train

Values = NDArray[np.float64]
SERIES, STEPS, H, WINDOWS = 60, 700, 7, 10
PROBABILITIES = [(2 * k - 1) / 200 for k in range(1, 101)]


@dataclass(frozen=True)
class Panel:
    """A Gaussian process, all series alike: frequency, mean (T,) and covariance (T, T)."""

    frequency: str
    mean: Values
    covariance: Values

    def values(self, seed: int = 0) -> Values:
        """(N, T)."""
        root = np.linalg.cholesky(self.covariance + 1e-9 * np.eye(STEPS))
        return self.mean + np.random.default_rng(seed).standard_normal((SERIES, STEPS)) @ root.T

    def best(self, values: Values, origin: int, context: int) -> tuple[Values, Values]:
        """The conditional distribution of H steps given those of the context: means (N, H) and deviations (H,)."""
        past, ahead = slice(origin - context, origin), slice(origin, origin + H)
        covariance = self.covariance
        gain = np.linalg.solve(covariance[past, past], covariance[past, ahead])
        left = covariance[ahead, ahead] - covariance[ahead, past] @ gain
        return self.mean[ahead] + (values - self.mean)[:, past] @ gain, np.sqrt(np.diag(left))


def ar1(coefficient: float) -> Values:
    """The covariance of unit innovations."""
    steps = np.arange(STEPS)
    power: Values = coefficient ** np.abs(steps[:, None] - steps)
    return power / (1 - coefficient**2)


def walks() -> Panel:
    steps = np.arange(1.0, STEPS + 1)
    return Panel("D", np.full(STEPS, 50.0), np.minimum(steps[:, None], steps))


def seasons() -> Panel:
    """A day and half a day of hourly steps, with an amplitude and a phase for each series, and AR(1) noise."""
    ago = np.subtract.outer(np.arange(STEPS), np.arange(STEPS))
    waves = 9 * np.cos(2 * np.pi * ago / 24) + 4 * np.cos(2 * np.pi * ago / 12)
    return Panel("h", np.full(STEPS, 10.0), waves + ar1(0.7))


def weather() -> Panel:
    """Months of 58 years: a year's season, of each place's own size about its own mean, and AR(1) weather."""
    year = -np.cos(2 * np.pi * np.arange(STEPS) / 12)
    return Panel("MS", 10 + 5 * year, 9.0 + np.outer(year, year) + ar1(0.5))


def task_of(
    frequency: str, values: Values, folder: Path, **settings: object
) -> tuple[configuration.Config, SeriesTask]:
    stamps = pd.date_range("1960-01-01", periods=STEPS, freq=frequency)
    frames = [pd.DataFrame({"timestamp": stamps, "name": f"s{n:03d}", "target": own}) for n, own in enumerate(values)]
    pd.concat(frames).to_parquet(folder / "series.parquet")
    data = {"kind": "table", "path": str(folder / "series.parquet"), "id_columns": ["name"], "test_windows": WINDOWS}
    data["validation_windows"] = 1
    section = {"kind": "forecasting", "horizon": H, "data": data, "train_stride": 5, "baselines": []}
    section |= {"model": {"anchor": "linear"}}
    training = {"epochs": 6, "workers": 0, "device": "cpu"} | settings
    config = configuration.parse({"name": "known", "task": section, "training": training, "tracking": {"interval": 0}})
    return config, SeriesTask(config.task)  # type: ignore[arg-type]


def against_best(crps: torch.Tensor, task: SeriesTask, panel: Panel, values: Values) -> tuple[float, float]:
    """Ratio of mean CRPS of test windows (N, H) to that of the best forecast, and its standard error."""
    _, targets = task.data.test.__getitems__(range(len(task.data.test)))
    index = task.data.test.index
    made = {origin: panel.best(values, origin, task.context) for origin in set(index[:, 1].tolist())}
    mean = torch.from_numpy(np.stack([made[origin][0][series] for series, origin in index.tolist()]))
    deviation = torch.from_numpy(np.stack([made[origin][1] for origin in index[:, 1].tolist()]))
    return ratio_of(crps, crps_gaussian(mean, deviation, targets[:, 0].double()))


def ratio_of(crps: torch.Tensor, least: torch.Tensor) -> tuple[float, float]:
    """Of means over series, and its standard error."""
    own, its = (each.mean(1).view(SERIES, -1).mean(1) for each in (crps, least))
    ratio = float(own.mean() / its.mean())
    return ratio, float((own - ratio * its).std() / its.mean() / SERIES**0.5)


def crps_of(predictive: ForecastPredictive) -> torch.Tensor:
    """(N, H)."""
    quantiles = torch.cat([chunk.quantiles(PROBABILITIES) for chunk in predictive.chunks()], 1).double()
    return by_quantiles(quantiles, predictive.targets[:, 0].double())


def by_quantiles(quantiles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The CRPS (N, H) of quantiles (Q, N, H), about."""
    error, level = targets - quantiles, torch.tensor(PROBABILITIES).double()[:, None, None]
    return 2 * torch.maximum(level * error, (level - 1) * error).mean(0)


@pytest.mark.parametrize("panel", [walks, seasons, weather])
def test_the_anchor_alone_is_near_the_best(panel: Callable[[], Panel], tmp_path: Path) -> None:
    process = panel()
    _, task = task_of(process.frequency, values := process.values(), tmp_path)
    module = task.build_model()
    inputs, targets = task.data.test.__getitems__(range(len(task.data.test)))
    assert task.anchor is not None
    found = task.anchor(module._unpack(inputs))
    mean, spread = (task.unit * each for each in (found.level + found.scale * found.path, found.scale * found.spread))
    ratio, error = against_best(
        crps_gaussian(mean.double(), spread.double(), targets[:, 0].double()), task, process, values
    )
    assert error < 0.01
    assert ratio < 1.06


@pytest.mark.slow
@pytest.mark.parametrize("panel", [walks, seasons, weather])
def test_a_network_is_near_the_best(panel: Callable[[], Panel], tmp_path: Path) -> None:
    process = panel()
    config, task = task_of(process.frequency, values := process.values(), tmp_path)
    ratio, error = against_best(crps_of(trained(config, task, tmp_path)), task, process, values)
    assert error < 0.01
    assert ratio < 1.05


@pytest.mark.slow
def test_a_network_is_near_the_best_of_intermittent_counts(tmp_path: Path) -> None:
    """Counts of days, two of three of them 0: rates of gamma's distribution with shape 1 and mean 2/3."""
    generator = np.random.default_rng(0)
    counts = generator.poisson(generator.gamma(1.0, 1 / 1.5, (SERIES, 1)), (SERIES, STEPS)).astype(float)
    config, task = task_of("D", counts, tmp_path)
    assert task.likelihood_name.endswith("negative_binomial")
    predictive = trained(config, task, tmp_path)
    index, past = task.data.test.index, task.context
    shape = 1.0 + np.array([counts[series, origin - past : origin].sum() for series, origin in index.tolist()])
    given = stats.nbinom(shape[:, None], (1.5 + past) / (2.5 + past))
    best = torch.from_numpy(np.stack([np.tile(given.ppf(level), (1, H)) for level in PROBABILITIES]))
    ratio, error = ratio_of(crps_of(predictive), by_quantiles(best, predictive.targets[:, 0].double()))
    assert error < 0.01
    assert ratio < 1.05


def trained(config: configuration.Config, task: SeriesTask, folder: Path) -> ForecastPredictive:
    """What a posterior that is trained says of the test windows."""
    context = LocalWorker(folder / "run", torch.device("cpu"), lambda payloads: None, keep=1)
    train(config, config.method, config.training.epochs, task, context)
    (found,) = (folder / "run" / "checkpoints").glob("*/posterior")
    posterior = Posterior.load(found)
    module = posterior.load_into(task.build_model())
    predictive = task.predict(module, lambda: evaluation_batches(task.data.test, 100, 0, 1), posterior)
    assert isinstance(predictive, ForecastPredictive)
    return predictive
