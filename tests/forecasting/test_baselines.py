"""Baselines go on from each window's past alone, are statsforecast's own where they are said to be, and take the season that
serves."""

from __future__ import annotations

import json
import logging
from typing import get_args

import numpy as np
import pytest
import torch
from gluonts.dataset.field_names import FieldName
from gluonts.transform import AddObservedValuesIndicator
from statsforecast import models

from proxscore.forecasting.baselines import BASELINES, History, best_of_each, filled, judge, naive, seasons
from proxscore.forecasting.baselines import names as registry
from proxscore.forecasting.baselines.judging import thin
from proxscore.forecasting.splits import Split
from proxscore.forecasting.task import BaselineName
from proxscore.forecasting.windows import Field, Packing, Panel, Windows
from proxscore.tasks.baselines import BestBaseline

RECORDED = AddObservedValuesIndicator(target_field=FieldName.TARGET, output_field=FieldName.OBSERVED_VALUES)
SEASONAL = [kind for kind in BASELINES if kind not in ("naive", "drift", "ewma", "garch")]


def windows(series: list[np.ndarray], index: list[tuple[int, int]], horizon: int) -> Windows:
    entries = [{"target": values, "start": None, "item_id": str(n)} for n, values in enumerate(series)]
    packing = Packing((Field("past_target", "target", (3,), torch.float32, -3),))
    return Windows(Panel(entries, RECORDED, packing, horizon), np.array(index))


def weekly(steps: int, noise: float = 0.1) -> np.ndarray:
    values = np.tile([10.0, 40, 20, 30, 25, 5, 0], steps // 7 + 1)[:steps] + 100
    return (values + noise * np.random.default_rng(0).standard_normal(steps)).astype(np.float32)


def split(end: int, validation: list[int], test: list[int]) -> Split:
    return Split(end, np.array(validation, np.int64), np.array(test, np.int64))


def test_the_setting_names_every_baseline() -> None:
    assert list(get_args(BaselineName)) == list(BASELINES)


@pytest.mark.parametrize("kind", SEASONAL)
@pytest.mark.parametrize("start", range(7))
def test_every_origin_is_as_good_as_any_other(kind: str, start: int) -> None:
    """Also those that are no whole number of seasons after the beginning, with a past that is longer than is looked at."""
    series = weekly(700)
    baseline = BASELINES[kind](History([series], [600 + start], 14, [7]), 7)
    origins = np.arange(640, 648)
    mean, spread = baseline(0, origins)
    assert np.abs(mean - series[origins[:, None] + np.arange(14)]).mean(1).max() < 0.5
    assert (spread < 1).all()
    assert not baseline.failed


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        *(("naive", models.Naive()), ("drift", models.RandomWalkWithDrift())),
        *(
            ("seasonal_naive", models.SeasonalNaive(7)),
            ("standard_theta", models.Theta(7)),
            ("theta", models.AutoTheta(7)),
        ),
    ],
)
def test_a_forecast_at_the_end_of_training_is_the_librarys(kind: str, theirs: models._TS) -> None:
    series = weekly(200, 3.0)
    expected = theirs.forecast(series.astype(np.float64), h=10, level=[80])
    mean, spread = BASELINES[kind](History([series], [200], 10, [7]), 7)(0, np.array([200]))
    np.testing.assert_allclose(mean[0], expected["mean"], rtol=1e-6)
    np.testing.assert_allclose(spread[0], (expected["hi-80"] - expected["lo-80"]) / 2 / 1.2815515655446004, rtol=1e-6)


@pytest.mark.parametrize("kind", BASELINES)
def test_the_future_of_a_window_changes_no_forecast(kind: str) -> None:
    """Neither its own targets nor what comes after training changes parameters; the first series begins with a gap."""
    generator = np.random.default_rng(1)
    late = weekly(150, 2.0)
    late[:40] = np.nan
    late[60:64] = np.nan
    series = [late, weekly(150, 2.0) + 50]
    index = [np.array([30, 40, 41, 110, 120]), np.array([100, 121])]
    plain = BASELINES[kind](History(series, [90, 100], 5, [7]), 7)
    for number, origins in enumerate(index):
        for origin in origins.tolist():
            changed = [values.copy() for values in series]
            for values, end in zip(changed, (90, 100), strict=True):
                values[max(origin, end) :] = generator.normal(1000, 300, len(values) - max(origin, end))
            if origin < 90:  # before the first observation, where nothing is known
                changed[0][origin:90] = np.where(np.isnan(late[origin:90]), np.nan, late[origin:90])
            other = BASELINES[kind](History(changed, [90, 100], 5, [7]), 7)
            for ours, theirs in zip(plain(number, np.array([origin])), other(number, np.array([origin])), strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "kind", [kind for kind in BASELINES if kind != "linear_ar"]
)  # which has nothing to learn there
def test_nothing_after_the_start_of_a_window_is_looked_at_over_gaps(kind: str) -> None:
    """Zeros, a gap, and hundreds: before the hundreds nothing tells of them."""
    series = np.concatenate([np.zeros(100), np.full(20, np.nan), np.full(40, 100.0)]).astype(np.float32)
    other = series.copy()
    other[120:] = -7.0
    found = [BASELINES[kind](History([y], [90], 10, [1]), 1)(0, np.array([120, 115])) for y in (series, other)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0][0]).max() < 1e-6
    assert (found[0][1] > 0).all()


def test_the_season_with_the_best_validation_windows_is_taken() -> None:
    series = [weekly(300), weekly(260, 2.0)]
    splits = [split(260, [270], [290]), split(220, [230], [250])]
    history = History(series, [260, 220], 10, [5, 7, 30])
    judged = judge(history, splits, ["seasonal_naive", "ets", "theta", "climatology"])
    assert [each.label for each in judged.fitted] == ["seasonal naive, 7", "ETS", "theta, 7", "climatology, 7"]
    test = windows(series, [(0, 290), (1, 250)], 10)
    predictive = judged.fitted[1].predictive(test)
    assert torch.equal(predictive.targets, test.__getitems__([0, 1])[1])
    mean, spread = judged.fitted[1].baseline(1, np.array([250]))
    np.testing.assert_allclose(predictive.outputs[0, 1], np.stack([mean[0], spread[0]], -1), rtol=1e-6)


def test_the_best_is_that_of_the_validation_windows_with_its_metrics_of_the_test_windows() -> None:
    """The last steps of the series go another way, where the naive forecast is the better one."""
    series = np.concatenate([weekly(280), np.full(20, 500.0)]).astype(np.float32)
    splits = [split(250, [264], [290])]
    best = judge(History([series], [250], 10, [7]), splits, ["naive", "seasonal_naive"]).best(splits, [2.0])
    assert best is not None
    assert (best.name, list(best.validation)) == ("seasonal naive", ["seasonal naive", "naive"])
    assert best.test["mae"] == pytest.approx(2 * best.test["mase"])


def test_none_is_the_best_where_validation_windows_have_no_target() -> None:
    splits = [split(250, [], [290])]
    best = judge(History([weekly(300)], [250], 10, [7]), splits, ["naive", "seasonal_naive"]).best(splits, [2.0])
    assert best == BestBaseline("", {}, {}, ("no target of the validation windows is observed: none is the best",))


def test_a_line_says_who_is_behind() -> None:
    best = BestBaseline("theta, 336", {}, {"crps": 356.4})
    assert best.beside({"crps": 1732.25}) == "behind theta, 336: CRPS 1,732 against 356.4"
    assert best.beside({"crps": 0.123456}) == "ahead of theta, 336: CRPS 0.1235 against 356.4"
    assert best.beside({"nll": 2.0}) is None
    assert BestBaseline("", {}, {}, ("failed: no",)).beside({"crps": 1.0}) is None
    assert BestBaseline.of_json(json.loads(json.dumps(best.to_json()))) == best


def test_a_series_that_a_method_fails_on_has_the_naive_forecast_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    series = [weekly(60), np.array([1, 2, 4, 3, 5, 6, 7, 8], np.float32)]
    (fitted,) = judge(History(series, [40, 2], 5, [7]), [split(40, [50], []), split(2, [3], [])], ["ets"]).fitted
    with caplog.at_level(logging.WARNING):
        found = fitted.predictive(windows(series, [(0, 50), (1, 3)], 5))
    assert "ets with season 7 fails on 1 of 2 series: the seasonal naive forecast stands in" in caplog.text
    assert found.outputs[0, 1, :, 0].tolist() == [4.0] * 5
    assert found.outputs.isfinite().all()
    assert (found.outputs[..., 1] > 0).all()


def test_a_baseline_that_fails_as_a_whole_is_told_and_hides_no_other() -> None:
    series = np.array([1, 2, 4, 3, 5, 6, 7, 8], np.float32)
    found, notes = best_of_each(History([series], [3], 2, [1]), [np.array([4])], [("linear_ar", 1), ("naive", 1)])
    assert [each.kind for each in found] == ["naive"]
    assert notes == ["linear AR failed: windows of training are too few for 2 weights: 1"]


def test_what_is_slow_is_left_out_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxscore.forecasting.baselines.judging.SECONDS", 0.02)
    history, splits = History([weekly(300)], [250], 10, [7, 35]), [split(250, [264], [290])]
    judged = judge(history, splits, None)
    assert {each.kind for each in judged.fitted} == {*registry.QUICK} - {"ets", "theta"}
    (note,) = judged.notes
    assert note.startswith(
        "left out, as slow: theta, season 7 (about 0 s); theta, season 35 (about 0 s); ETS, season 7"
    )
    assert note.endswith(": task.baselines=[theta,ets] runs them")
    judged = judge(history, splits, ["theta"])
    assert [(each.kind, judged.notes) for each in judged.fitted] == [("theta", [])]


def test_many_validation_windows_are_thinned_evenly() -> None:
    origins = [np.arange(100, 400), np.arange(0), np.arange(50, 150)]
    chosen = thin(origins, 40)
    assert [len(each) for each in chosen] == [30, 0, 10]
    assert all(np.isin(few, all_).all() for few, all_ in zip(chosen, origins, strict=True))
    assert set(np.diff(chosen[0])) <= {10, 11}
    assert all(few is all_ for few, all_ in zip(thin(origins, 400), origins, strict=True))


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
