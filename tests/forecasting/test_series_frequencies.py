"""Time grids: aliases, steps, and frequencies told from timestamps."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from gluonts.time_feature import get_lags_for_frequency, get_seasonality, time_features_from_frequency_str

from proxscore.config import ConfigError
from proxscore.forecasting.frequencies import Grid, infer

ALIASES = [
    "s",
    "10s",
    "min",
    "15min",
    "h",
    "2h",
    "D",
    "2D",
    "W-SUN",
    "W-TUE",
    "B",
    "ME",
    "MS",
    "QE-DEC",
    "QS-FEB",
    "YE-DEC",
    "YS-APR",
]


def stamps(frequency: str, count: int = 60, start: str = "2000-02-03 06:00") -> np.ndarray:
    return pd.date_range(start, periods=count, freq=frequency).to_numpy().astype("datetime64[ns]")


@pytest.mark.parametrize("alias", ALIASES)
def test_stamps_of_a_pandas_range_are_consecutive_steps_and_tell_their_frequency(alias: str) -> None:
    times = stamps(alias)
    grid = Grid.of(alias)
    steps, exact = grid.steps(times)
    assert exact.all()
    np.testing.assert_array_equal(steps, np.arange(60))
    assert infer(times) == grid


@pytest.mark.parametrize("alias", ALIASES)
def test_adding_steps_to_the_start_gives_the_period_of_each_stamp(alias: str) -> None:
    times, grid = stamps(alias), Grid.of(alias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for step in (0, 1, 17, 59):
            assert grid.start(times[0]) + step == grid.start(times[step])


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_frequency_is_told_through_gaps_and_steps_count_them(alias: str, seed: int) -> None:
    kept = np.sort(np.random.default_rng(seed).choice(200, 180, replace=False))
    times = stamps(alias, 200)[kept]
    grid = infer(times)
    assert grid == Grid.of(alias)
    steps, exact = grid.steps(times)
    assert exact.all()
    np.testing.assert_array_equal(steps, kept - kept[0])


@pytest.mark.parametrize("alias", ALIASES)
def test_gluonts_takes_the_frequency(alias: str) -> None:
    grid = Grid.of(alias)
    assert get_seasonality(grid.frequency) >= 1
    assert isinstance(time_features_from_frequency_str(grid.frequency), list)
    assert min(get_lags_for_frequency(grid.frequency)) == 1


def test_aliases_of_one_grid_are_one_frequency() -> None:
    for first, second in [("MS", "ME"), ("QS-JAN", "QE-DEC"), ("QS-OCT", "QE-JUN"), ("YS-JAN", "YE-DEC")]:
        assert Grid.of(first) == Grid.of(second)
    assert Grid.of("YS-APR").period == "Y-MAR"
    assert Grid.of("60s").step == Grid.of("min").step


def test_times_off_the_grid_are_told_apart() -> None:
    times = stamps("h", 5)
    times[3] += np.timedelta64(10, "m")
    assert Grid.of("h").steps(times)[1].tolist() == [True, True, True, False, True]
    saturday = np.array(["2024-01-05", "2024-01-06", "2024-01-08"], dtype="datetime64[ns]")
    steps, exact = Grid.of("B").steps(saturday)
    assert (steps[2], exact.tolist()) == (1, [True, False, True])


def test_one_stamp_off_the_grid_does_not_hide_the_frequency() -> None:
    times = stamps("10min", 50)
    times[20] += np.timedelta64(3, "m")
    assert infer(times) == Grid.of("10min")


def test_stamps_without_a_pattern_tell_nothing() -> None:
    times = np.datetime64("2000-01-01", "ns") + np.cumsum(np.random.default_rng(0).integers(1, 10**15, 50))
    assert infer(times) is None
    assert infer(stamps("D", 2)) is None
    days = np.array(["2000-01-03", "2000-01-04", "2000-01-05"], dtype="datetime64[ns]")
    assert infer(days) == Grid.of("D")  # three weekdays: too few to say that weekends are left out


@pytest.mark.parametrize("alias", ["x", "0h", "-1D", "SME", "bh", "ms", ""])
def test_other_frequencies_are_refused_with_those_known(alias: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Grid.of(alias, "task.data.frequency")
    expected = "is unknown; use s, min, h, D, B, W, ME, QE, YE, or a multiple of one as 30min"
    assert str(caught.value) == f"task.data.frequency {alias!r} {expected}"
