"""The floors are the forecasts of their books: written out, and of statsmodels' own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.tsa.exponential_smoothing.ets import ETSModel

from proxscore.forecasting.floors import ExponentialSmoothing, seasonal_naive


def test_seasonal_naive_repeats_the_last_season_and_widens_with_every_season_ahead() -> None:
    generator = np.random.default_rng(0)
    past = np.tile([1.0, 5.0, 3.0, 2.0], 50) + 0.5 * generator.standard_normal(200)
    mean, spread = seasonal_naive(past, 10, 4)
    for h in range(1, 11):
        k = (h - 1) // 4
        assert mean[h - 1] == past[199 + h - 4 * (k + 1)]
        assert spread[h - 1] == pytest.approx(np.sqrt(np.mean((past[4:] - past[:-4]) ** 2) * (k + 1)))


def test_a_past_shorter_than_a_season_is_repeated_by_its_last_value() -> None:
    mean, _ = seasonal_naive(np.array([1.0, 2.0, 4.0]), 5, 7)
    assert mean.tolist() == [4.0] * 5


def test_exponential_smoothing_is_statsmodels_and_follows_the_data_at_later_origins() -> None:
    generator = np.random.default_rng(1)
    steps = np.arange(400)
    values = 10 + 3 * np.sin(2 * np.pi * steps / 12) + 0.01 * steps + 0.3 * generator.standard_normal(400)
    smoothing = ExponentialSmoothing(values[:192], 12)
    model = ETSModel(
        pd.Series(values[:192]), error="add", trend="add", damped_trend=True, seasonal="add", seasonal_periods=12
    ).fit(disp=False, maxiter=100)
    expected = model.get_prediction(start=192, end=203)
    mean, spread = smoothing(values[:192], 12)
    np.testing.assert_allclose(mean, expected.predicted_mean, rtol=1e-6)
    np.testing.assert_allclose(spread, np.sqrt(expected.forecast_variance), rtol=1e-6)
    later, _ = smoothing(values[:300], 12)
    error = np.abs(later - values[300:312]).mean()
    assert error < 0.5 * np.abs(mean - values[300:312]).mean() + 0.5
    assert error < 0.6  # the noise's own mean absolute deviation is 0.24
