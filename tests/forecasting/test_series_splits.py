"""Rolling origins."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.split import split as gluonts_split
from gluonts.ev.ts_stats import seasonal_error

from proxscore.config import ConfigError
from proxscore.forecasting.series import Borders, Series, SeriesData
from proxscore.forecasting.sources.recipe import RecipeConfig
from proxscore.forecasting.sources.taylor import TaylorConfig
from proxscore.forecasting.splits import record, season_errors, split_series, usual_windows

START = pd.Period("2024-03-01", "D")


def data(*lengths: int, borders: Borders | None = None, season: int = 7) -> SeriesData:
    rng = np.random.default_rng(0)
    series = (Series.plain(f"s{i}", START, rng.normal(size=length)) for i, length in enumerate(lengths))
    return SeriesData(tuple(series), "D", season, borders=borders)


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
@pytest.mark.parametrize("windows", [1, 4])
def test_test_windows_are_those_of_gluonts_rolling_split(stride: int, windows: int) -> None:
    whole = data(60, 73)
    # GluonTS counts forwards from the step where the first window begins.
    offset = -(5 + stride * (windows - 1))
    _, template = gluonts_split(whole.to_gluonts(), offset=offset)
    theirs = list(template.generate_instances(5, windows=windows, distance=stride))
    splits = split_series(whole, 5, test_windows=windows, stride=stride)
    origins = [(each, int(o)) for each, split in zip(whole.series, splits, strict=True) for o in split.test]
    assert len(theirs) == len(origins)
    for (past, future), (each, origin) in zip(theirs, origins, strict=True):
        np.testing.assert_array_equal(each.target[:origin], past["target"])
        np.testing.assert_array_equal(each.target[origin : origin + 5], future["target"])


@pytest.mark.parametrize("horizon", [1, 5, 9])
@pytest.mark.parametrize("stride", [None, 1, 4, 12])
@pytest.mark.parametrize(("test", "validation"), [(1, 1), (3, 2), (2, 6)])
def test_no_target_is_in_two_parts_and_none_but_the_first_is_left_between(
    horizon: int, stride: int | None, test: int, validation: int
) -> None:
    whole = data(150, 171)
    splits = split_series(whole, horizon, context=10, test_windows=test, validation_windows=validation, stride=stride)
    for each, split in zip(whole.series, splits, strict=True):
        assert (len(split.validation), len(split.test)) == (validation, test)
        targets = {
            "train": set(range(split.train_end)),
            "validation": {o + h for o in split.validation.tolist() for h in range(horizon)},
            "test": {o + h for o in split.test.tolist() for h in range(horizon)},
        }
        assert max(targets["train"]) + 1 == min(targets["validation"])
        assert max(targets["validation"]) + 1 == min(targets["test"])
        assert max(targets["test"]) + 1 == len(each)
        for origins in (split.validation, split.test):
            assert set(np.diff(origins)) <= {stride or horizon}


def test_windows_at_borders_are_those_of_the_benchmarks_loader() -> None:
    borders, horizon, context = Borders(700, 800, 1000), 24, 96
    (split,) = split_series(data(1000, borders=borders), horizon, context=context)
    # The loaders of Informer and Autoformer: part i is data[border1[i]:border2[i]], item s of it has the targets
    # s + seq_len .. s + seq_len + pred_len, for len(part) - seq_len - pred_len + 1 items.
    border1 = [0, 700 - context, 800 - context]
    border2 = [700, 800, 1000]
    theirs = [
        [b1 + s + context for s in range(b2 - b1 - context - horizon + 1)]
        for b1, b2 in zip(border1, border2, strict=True)
    ]
    assert split.train_end == 700
    assert list(range(context, split.train_end - horizon + 1)) == theirs[0]
    assert split.validation.tolist() == theirs[1]
    assert split.test.tolist() == theirs[2]
    (strided,) = split_series(data(1000, borders=borders), horizon, context=context, stride=10)
    assert strided.test.tolist() == theirs[2][::10]


def test_the_shortest_series_that_can_be_split_is_split_and_one_step_less_is_refused() -> None:
    settings = {"context": 10, "test_windows": 3, "validation_windows": 2, "stride": 4}
    needed = (5 + 2 * 4) + (5 + 4) + 10 + 5
    (split,) = split_series(data(needed), 5, **settings)
    assert split.train_end == 15
    with pytest.raises(ConfigError) as caught:
        split_series(data(200, needed - 1), 5, **settings)
    assert str(caught.value) == (
        "series 's1' has 36 steps and needs 37: 22 for validation and test, and 10 of past with a horizon of 5 to train on; "
        "use a shorter horizon or context, fewer windows or a smaller stride, or leave the series out"
    )
    with pytest.raises(ConfigError, match="series 's0' has 4 steps and needs 16: 10 for validation and test"):
        split_series(data(4), 5)


def test_a_horizon_longer_than_a_part_at_borders_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="series 's0': its validation part has 20 steps, and a horizon of 21 needs 21"
    ):
        split_series(data(200, borders=Borders(140, 160, 200)), 21)
    with pytest.raises(
        ConfigError, match=r"series 's0' has 200 steps and needs 210: 60 for .* and 130 of past with a horizon"
    ):
        split_series(data(200, borders=Borders(140, 160, 200)), 20, context=130)


def test_the_configuration_sets_the_windows() -> None:
    (split,) = TaylorConfig(kind="taylor", test_windows=3, validation_windows=2, stride=2).split(data(90), 5)
    assert (split.test.tolist(), split.validation.tolist(), split.train_end) == ([81, 83, 85], [74, 76], 74)
    recipe = RecipeConfig(kind="recipe", name="ECL", path="here", stride=7)
    (split,) = recipe.split(data(100, borders=Borders(70, 80, 100)), 5)
    assert (split.test.tolist(), split.validation.tolist(), split.train_end) == ([80, 87, 94], [70], 70)


@pytest.mark.parametrize("season", [1, 7, 24])
def test_season_errors_are_gluonts_own_of_the_training_part(season: int) -> None:
    whole = data(60, 90, season=season)
    splits = split_series(whole, 5)
    expected = [
        seasonal_error(each.target[: split.train_end].astype(np.float64), season)[0]
        for each, split in zip(whole.series, splits, strict=True)
    ]
    np.testing.assert_allclose(season_errors(whole, splits), expected, rtol=1e-6)


def test_season_errors_leave_out_missing_values_and_fall_back_to_one_step() -> None:
    target = np.array([1, 4, np.nan, 2, 7, 7, 1, 1], dtype=np.float32)
    constant = np.full(8, 3, dtype=np.float32)
    whole = SeriesData((Series.plain("a", START, target), Series.plain("b", START, constant)), "D", 2)
    splits = split_series(whole, 1)
    assert [split.train_end for split in splits] == [6, 6]
    # pairs two apart within the first six: (1, -), (4, 2), (-, 7), (2, 7)
    np.testing.assert_allclose(season_errors(whole, splits), [(2 + 5) / 2, np.nan])
    long = SeriesData(whole.series, "D", 6)
    np.testing.assert_allclose(season_errors(long, splits), [(3 + 5 + 0) / 3, np.nan])


def test_the_record_changes_with_every_origin() -> None:
    whole = data(60, 73)
    settings = [{}, {"stride": 1}, {"test_windows": 2}, {"validation_windows": 2}, {"test_windows": 2, "stride": 2}]
    records = [record(split_series(whole, 5, **each), 5) for each in settings]
    assert len({each["sha256"] for each in records}) == len({str(each) for each in records})
    assert records[2] | {"sha256": ""} == {
        "horizon": 5,
        "training_steps": 45 + 58,
        "validation_windows": 2,
        "test_windows": 4,
        "sha256": "",
    }


@pytest.mark.parametrize(
    ("lengths", "horizon", "stride", "windows"),
    [
        ([40000], 48, 48, 99),  # 99 calibrate intervals of 50, 80, 90 and 95 % exactly
        ([400, 1000], 14, 14, 4),  # a sixth of the shortest
        ([4032], 48, 48, 14),
        ([400, 1000], 14, 1, 53),
        ([1000] * 200, 14, 14, 10),  # 2,000 in all
        ([1000] * 5000, 14, 14, 1),
        ([60, 70], 18, 18, 1),  # at least one, if there is no room for it
    ],
)
def test_windows_that_nobody_asks_for_are_many_but_leave_two_thirds_to_train_on(
    lengths: list[int], horizon: int, stride: int, windows: int
) -> None:
    assert usual_windows(lengths, horizon, stride) == windows
    if windows > 1:
        (split, *_) = split_series(
            data(*lengths), horizon, test_windows=windows, validation_windows=windows, stride=stride
        )
        assert split.train_end >= lengths[0] * 2 / 3


def test_windows_that_nobody_asks_for_leave_training_its_context() -> None:
    assert usual_windows([100], 5, 5) == 3
    assert usual_windows([100], 5, 5, context=75) == 2
    splits = TaylorConfig().split(TaylorConfig().load(), 48)
    assert [len(splits[0].validation), len(splits[0].test)] == [14, 14]
    chosen = TaylorConfig(validation_windows=2)
    assert [len(chosen.split(chosen.load(), 48)[0].validation), len(chosen.split(chosen.load(), 48)[0].test)] == [2, 14]
