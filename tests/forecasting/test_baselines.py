"""The baselines are statsforecast's own, go on from each window's past alone, and take the season that serves."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from gluonts.dataset.field_names import FieldName
from gluonts.transform import AddObservedValuesIndicator
from statsforecast import models

from proxscore.forecasting.baselines import BASELINES, Baseline, baselines, filled, naive, seasons
from proxscore.forecasting.windows import Field, Packing, Panel, Windows

RECORDED = AddObservedValuesIndicator(target_field=FieldName.TARGET, output_field=FieldName.OBSERVED_VALUES)


def windows(series: list[np.ndarray], index: list[tuple[int, int]], horizon: int) -> Windows:
    entries = [{"target": values, "start": None, "item_id": str(n)} for n, values in enumerate(series)]
    packing = Packing((Field("past_target", "target", (3,), torch.float32, -3),))
    return Windows(Panel(entries, RECORDED, packing, horizon), np.array(index))


def weekly(steps: int, noise: float = 0.1) -> np.ndarray:
    values = np.tile([10.0, 40, 20, 30, 25, 5, 0], steps // 7 + 1)[:steps] + 100
    return (values + noise * np.random.default_rng(0).standard_normal(steps)).astype(np.float32)


@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("start", range(7))
def test_every_origin_is_as_good_as_any_other(kind: str, start: int) -> None:
    """Also those that are no whole number of seasons after the beginning, with a past that is longer than is looked at."""
    series = weekly(700)
    floor = Baseline(kind, filled(series[: 600 + start], 7), 7)
    for origin in range(640, 648):
        mean, spread = floor(filled(series[:origin], 7), 14)
        assert np.abs(mean - series[origin : origin + 14]).mean() < 0.5, origin
        assert (spread < 1).all()


@pytest.mark.parametrize(("kind", "theirs"), [("seasonal_naive", models.SeasonalNaive), ("theta", models.AutoTheta)])
def test_a_forecast_at_the_end_of_training_is_the_librarys(kind: str, theirs: type) -> None:
    series = weekly(200, 3.0).astype(np.float64)
    expected = theirs(season_length=7).forecast(series, h=10, level=[80])
    mean, spread = Baseline(kind, series, 7)(series, 10)
    np.testing.assert_allclose(mean, expected["mean"], rtol=1e-6)
    np.testing.assert_allclose(spread, (expected["hi-80"] - expected["lo-80"]) / 2 / 1.2815515655446004, rtol=1e-6)


@pytest.mark.parametrize("kind", BASELINES)
def test_nothing_after_the_start_of_a_window_is_looked_at_over_gaps(kind: str) -> None:
    """Zeros, a gap, and hundreds: before the hundreds nothing tells of them."""
    series = np.concatenate([np.zeros(100), np.full(20, np.nan), np.full(40, 100.0)]).astype(np.float32)
    other = series.copy()
    other[120:] = -7.0
    found = []
    for values in (series, other):
        test = windows([values], [(0, 120), (0, 115)], 10)
        (predictive,) = baselines([kind], [values], [90], [1], test, test).values()
        found.append(predictive.outputs)
    assert torch.equal(found[0], found[1])
    assert found[0][..., 0].abs().max() < 1e-6


def test_the_season_with_the_best_validation_windows_is_taken() -> None:
    series = [weekly(300), weekly(260, 2.0)]
    validation, test = (windows(series, [(0, o), (1, o - 40)], 10) for o in (270, 290))
    found = baselines(["seasonal_naive", "ets", "theta"], series, [260, 220], [5, 7, 30], validation, test)
    assert list(found) == ["seasonal naive, 7", "ETS", "theta, 7"]
    assert torch.equal(found["ETS"].targets, test.__getitems__([0, 1])[1])


def test_a_series_that_a_method_fails_on_has_the_naive_forecast_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    series = [weekly(60), np.array([1, 2, 4, 3, 5, 6, 7, 8], np.float32)]
    test = windows(series, [(0, 50), (1, 3)], 5)
    with caplog.at_level(logging.WARNING):
        (found,) = baselines(["ets"], series, [40, 2], [7], test, test).values()
    assert "ets with season 7 fails on 1 of 2 series: the seasonal naive forecast stands in" in caplog.text
    assert found.outputs[0, 1, :, 0].tolist() == [4.0] * 5
    assert found.outputs.isfinite().all()
    assert (found.outputs[..., 1] > 0).all()


def test_the_naive_forecast_repeats_the_last_season_and_widens_with_every_season_ahead() -> None:
    past = np.tile([1.0, 5.0, 3.0, 2.0], 50) + 0.5 * np.random.default_rng(0).standard_normal(200)
    mean, spread = naive(past, 10, 4)
    for h in range(1, 11):
        k = (h - 1) // 4
        assert mean[h - 1] == past[199 + h - 4 * (k + 1)]
        assert spread[h - 1] == pytest.approx(np.sqrt(np.mean((past[4:] - past[:-4]) ** 2) * (k + 1)))
    assert naive(np.array([1.0, 2.0, 4.0]), 5, 7)[0].tolist() == [4.0] * 5


@pytest.mark.parametrize(
    ("frequency", "season", "expected"),
    [
        *(
            ("30min", 48, [48, 336]),
            ("15min", 96, [96, 672, 4]),
            ("h", 24, [24, 168]),
            ("min", 1440, [1440, 10080, 60]),
        ),
        *(("D", 7, [7, 365]), ("W-MON", 52, [52]), ("B", 5, [5, 261]), ("ME", 12, [12]), ("QE-DEC", 4, [4])),
        *(("YE-DEC", 1, [1]), ("2ME", 6, [6]), ("h", 12, [12, 24, 168]), ("7h", 1, [1, 24])),
    ],
)
def test_seasons_follow_the_frequency(frequency: str, season: int, expected: list[int]) -> None:
    assert seasons(frequency, season) == expected


def test_missing_steps_are_those_of_the_season_before() -> None:
    gaps = np.array([np.nan, 1, np.nan, 3, 4, 5, np.nan, np.nan, np.nan, np.nan], np.float32)
    assert filled(gaps, 3).tolist() == [1, 1, 1, 3, 4, 5, 3, 4, 5, 3]
    assert filled(gaps[:1], 3).tolist() == [0]
