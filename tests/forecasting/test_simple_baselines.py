"""The baselines in closed form, against formulas, recursions, numpy, pandas and scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from proxscore.calibration import ForecastMetrics
from proxscore.forecasting.baselines import BASELINES, History
from proxscore.forecasting.baselines.regression import ridge
from proxscore.forecasting.baselines.scores import Scores
from proxscore.forecasting.baselines.volatility import ewma, garch
from proxscore.forecasting.distributions import Normal
from proxscore.forecasting.mixtures import StepMixture

H = 12
AHEAD = np.arange(1, H + 1)


def walk(steps: int, sd: float = 2.0, seed: int = 0) -> np.ndarray:
    return (1000 + sd * np.random.default_rng(seed).standard_normal(steps).cumsum()).astype(np.float32)


@pytest.mark.parametrize("kind", ["naive", "ewma", "garch"])
def test_of_a_random_walk_the_spread_is_that_of_a_step_times_the_root_of_steps(kind: str) -> None:
    series = walk(600)
    mean, spread = BASELINES[kind](History([series], [500], H, [1]), 1)(0, np.array([520, 588]))
    assert (mean == series[[519, 587]][:, None]).all()
    np.testing.assert_allclose(spread / np.sqrt(AHEAD), 2.0, rtol=0.25)
    if kind != "garch":  # whose variances return to their level
        np.testing.assert_allclose(spread / spread[:, :1], np.sqrt(AHEAD)[None].repeat(2, 0), rtol=1e-12)


def test_the_drift_is_the_mean_difference_of_training() -> None:
    series = walk(300) + 0.7 * np.arange(300, dtype=np.float32)
    mean, _ = BASELINES["drift"](History([series], [250], H, [1]), 1)(0, np.array([260]))
    slope = (float(series[249]) - float(series[0])) / 249
    np.testing.assert_allclose(mean[0], series[259] + slope * AHEAD, rtol=1e-6)


def test_variances_follow_the_recursions() -> None:
    squares = np.random.default_rng(0).chisquare(1, 50)
    weighted, conditional, v, g = [], [], 0.7, 0.9
    for square in squares:
        v = 0.94 * v + 0.06 * square
        g = 0.9 * (1 - 0.1 - 0.8) + 0.1 * square + 0.8 * g
        weighted.append(v)
        conditional.append(g)
    np.testing.assert_allclose(ewma(squares, 0.94, 0.7), weighted)
    np.testing.assert_allclose(garch(squares, 0.1, 0.8, 0.9), conditional)


def test_garch_finds_the_parameters_of_a_garch_process_and_forecasts_its_variance() -> None:
    """Beside the variance that the process itself has at the origin, and its return to the level, by simulation's formula."""
    generator, alpha, beta, level = np.random.default_rng(3), 0.15, 0.8, 4.0
    variance, steps, variances = level, [], []
    for _ in range(3000):
        variances.append(variance)
        steps.append(np.sqrt(variance) * generator.standard_normal())
        variance = level * (1 - alpha - beta) + alpha * steps[-1] ** 2 + beta * variance
    series = np.concatenate([[500.0], 500 + np.cumsum(steps)]).astype(np.float32)
    history = History([series], [2501], H, [300])  # eight seasons of which are looked at
    fitted = BASELINES["garch"](history, 300)
    found = fitted.parameters[0]  # type: ignore[attr-defined]
    assert found[0] == pytest.approx(alpha, abs=0.06)
    assert found[0] + found[1] == pytest.approx(alpha + beta, abs=0.05)
    origins = np.arange(2600, 2900)
    _, spread = fitted(0, origins)
    truth = np.array(variances)[origins - 1]
    assert np.corrcoef(np.log(spread[:, 0] ** 2), np.log(truth))[0, 1] > 0.95
    a, b, s = found
    expected = sum(s + (a + b) ** k * (spread[:, 0] ** 2 - s) for k in range(H))
    np.testing.assert_allclose(spread[:, -1] ** 2, expected)
    worse = BASELINES["naive"](history, 300)(0, origins)[1]
    errors = series[origins] - series[origins - 1]
    assert stats.norm.logpdf(errors, 0, spread[:, 0]).mean() > stats.norm.logpdf(errors, 0, worse[:, 0]).mean() + 0.02


def test_climatology_is_the_mean_and_spread_of_the_same_weekday_of_the_last_eight_weeks() -> None:
    days = pd.date_range("2024-01-01", periods=300)
    values = np.random.default_rng(0).normal(50, 10, 300).astype(np.float32)
    values[[203, 217, 230]] = np.nan
    mean, spread = BASELINES["climatology"](History([values], [200], 10, [7]), 7)(0, np.array([240]))
    past = pd.Series(values, days)[240 - 56 : 240].astype(float)
    table = past.groupby(past.index.dayofweek).agg(["mean", "std", "count"]).loc[days[240:250].dayofweek]
    np.testing.assert_allclose(mean[0], table["mean"])
    np.testing.assert_allclose(spread[0], table["std"] * np.sqrt(1 + 1 / table["count"]))


def test_ridge_without_a_penalty_is_least_squares_and_with_one_the_normal_equations() -> None:
    generator = np.random.default_rng(0)
    inputs, outputs = generator.standard_normal((80, 5)), generator.standard_normal((80, 3))
    found = ridge(inputs, outputs, (0.0,))
    expected, losses, *_ = np.linalg.lstsq(inputs, outputs)
    np.testing.assert_allclose(found.weights, expected)
    np.testing.assert_allclose(found.spread, np.sqrt(losses / 75))
    found = ridge(inputs, outputs, (0.25,))
    np.testing.assert_allclose(found.weights, np.linalg.solve(inputs.T @ inputs + 20 * np.eye(5), inputs.T @ outputs))


def test_the_penalty_is_that_of_generalised_cross_validation() -> None:
    from sklearn.linear_model import RidgeCV

    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((60, 30))
    outputs = inputs[:, :1] * 0.5 + generator.standard_normal((60, 1))
    penalties = (1e-3, 1e-2, 0.1, 1.0, 10.0)
    losses = []
    for penalty in penalties:  # by its definition: n trace of squared residuals over squared degrees of freedom
        hat = inputs @ np.linalg.solve(inputs.T @ inputs + 60 * penalty * np.eye(30), inputs.T)
        losses.append(((outputs - hat @ outputs) ** 2).sum() / (60 - np.trace(hat)) ** 2)
    best = ridge(inputs, outputs, penalties).penalty
    assert best == penalties[int(np.argmin(losses))]
    left_out = RidgeCV(alphas=[60 * p for p in penalties], fit_intercept=False).fit(inputs, outputs[:, 0]).alpha_ / 60
    assert abs(np.log10(best / left_out)) <= 1  # which is much the same


def test_linear_autoregression_is_the_best_forecast_of_an_autoregression_of_differences() -> None:
    """d_t = .6 d_(t-1) + e: h steps ahead .6 (1 - .6^h) / .4 times the last difference; pooled over levels and scales."""
    generator, series = np.random.default_rng(0), []
    for scale in (1.0, 30.0):
        steps = np.zeros(2000)
        for t in range(1, 2000):
            steps[t] = 0.6 * steps[t - 1] + scale * generator.standard_normal()
        series.append((1000 * scale + steps.cumsum()).astype(np.float32))
    baseline = BASELINES["linear_ar"](History(series, [1500, 1500], H, [200]), 200)
    for number, scale in ((0, 1.0), (1, 30.0)):
        origins = np.arange(1600, 1980)
        mean, spread = baseline(number, origins)
        last = series[number][origins - 1].astype(float)
        expected = last[:, None] + (last - series[number][origins - 2])[:, None] * 1.5 * (1 - 0.6**AHEAD)
        theirs = scale * np.sqrt(np.cumsum(((1 - 0.6**AHEAD) / 0.4) ** 2))
        assert np.sqrt(np.mean((mean - expected) ** 2, 0) / theirs**2).max() < 0.25
        np.testing.assert_allclose(spread[0], theirs, rtol=0.15)


def test_linear_autoregression_does_not_depend_on_level_and_unit() -> None:
    series = walk(600)
    ours, theirs = (
        BASELINES["linear_ar"](History([values], [500], H, [1]), 1)(0, np.array([520]))
        for values in (series, 8 * series - 4096)
    )
    np.testing.assert_allclose(theirs[0], 8 * ours[0] - 4096, atol=0.05)
    np.testing.assert_allclose(theirs[1], 8 * ours[1], rtol=1e-3)


def test_scores_in_closed_form_are_those_of_the_metrics_of_forecasts() -> None:
    generator = np.random.default_rng(0)
    mean, values = generator.normal(20, 3, (2, 40, 5))
    spread, errors = generator.uniform(1, 4, (40, 5)), np.array([0.7, np.nan])
    values[generator.random((40, 5)) < 0.2] = np.nan
    found = Scores()
    for number in range(2):
        found.add(mean[number::2], spread[number::2], values[number::2], errors[number])
    outputs = torch.from_numpy(np.stack([mean, spread], -1))
    seen, targets = torch.from_numpy(~np.isnan(values)), torch.from_numpy(np.nan_to_num(values))
    metrics = ForecastMetrics(5, 2)
    mixture = StepMixture(Normal(), outputs[None])
    samples = Normal().sample(outputs, 4000, torch.Generator().manual_seed(0))
    number = torch.arange(40) % 2
    metrics.update(
        *(samples, targets, seen),
        season_error=torch.from_numpy(errors)[number],
        series=number,
        quantiles=mixture.quantiles,
        log_density=Normal().log_density(outputs, targets),
    )
    expected = metrics.compute()
    ours = found.means()
    assert ours.pop("crps") == pytest.approx(expected["crps"], rel=0.01)  # of samples
    assert ours == pytest.approx({name: expected[name] for name in ours}, rel=1e-4)
    assert set(ours) == {"nll", "mae", "smape", "mase", "coverage_90"}
