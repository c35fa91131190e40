"""The long-horizon benchmarks, on files of the official shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from proxscore.config import ConfigError
from proxscore.forecasting.sources.recipe import RECIPES, RecipeConfig

# Name -> first date, steps, as in the official files; a few columns stand for up to 862.
OFFICIAL = {
    "ETTh1": ("2016-07-01 00:00:00", "h", 17420),
    "ETTm2": ("2016-07-01 00:00:00", "15min", 69680),
    "ECL": ("2016-07-01 02:00:00", "h", 26304),
    "Exchange": ("1990-01-01 00:00:00", "D", 7588),
    "Weather": ("2020-01-01 00:10:00", "10min", 52696),
    "ILI": ("2002-01-01 00:00:00", "7D", 966),
}


def official(folder: Path, name: str, rows: int | None = None) -> pd.DataFrame:
    start, step, count = OFFICIAL[name]
    dates = pd.date_range(start, periods=rows or count, freq=step)
    values = np.random.default_rng(0).normal(5, 3, (len(dates), 3)).cumsum(axis=0).round(3)
    table = pd.DataFrame(values, columns=["0", "HUFL", "OT"])
    text = dates.strftime("%Y/%-m/%-d %-H:%M") if name == "Exchange" else dates.strftime("%Y-%m-%d %H:%M:%S")
    table.insert(0, "date", text)
    file = folder / RECIPES[name].file
    file.parent.mkdir(exist_ok=True)
    table.to_csv(file, index=False)
    return table


def config(folder: Path, name: str, **settings: bool) -> RecipeConfig:
    return RecipeConfig.model_validate({"kind": "recipe", "name": name, "path": folder, **settings})


@pytest.mark.parametrize("name", OFFICIAL)
def test_columns_are_series_in_units_of_the_training_part(tmp_path: Path, name: str) -> None:
    table = official(tmp_path, name)
    data = config(tmp_path, name).load()
    train, values = data.borders.train, table.drop(columns="date").to_numpy()
    expected = StandardScaler().fit(values[:train]).transform(values)
    np.testing.assert_allclose(np.stack([each.target for each in data.series], axis=1), expected, rtol=2e-5, atol=1e-5)
    assert [each.id for each in data.series] == ["0", "HUFL", "OT"]
    start = pd.Timestamp(OFFICIAL[name][0])
    assert all(each.start.start_time <= start <= each.start.end_time for each in data.series)
    assert data.record["irregular_steps"] == 0
    raw = config(tmp_path, name, standardise=False).load()
    np.testing.assert_allclose(raw.series[2].target, table.OT, rtol=1e-6)
    assert raw.record["standardised"] is False


@pytest.mark.parametrize(
    ("name", "horizon", "train", "validation", "test"),
    [
        # Numbers of windows with a context of 96 (ILI: 36) as the literature's loaders count them: ETT from its months,
        # the others from int(0.7 N), N - int(0.7 N) - int(0.2 N), int(0.2 N) rows.
        ("ETTh1", 96, 8449, 2785, 2785),
        ("ETTh1", 720, 7825, 2161, 2161),
        ("ETTm2", 96, 34369, 11425, 11425),
        ("ECL", 96, 18221, 2537, 5165),
        ("Exchange", 96, 5120, 665, 1422),
        ("Weather", 96, 36696, 5175, 10444),
        ("ILI", 24, 617, 74, 170),
    ],
)
def test_windows_are_as_many_as_in_the_literature(
    tmp_path: Path, name: str, horizon: int, train: int, validation: int, test: int
) -> None:
    official(tmp_path, name)
    data = config(tmp_path, name).load()
    context = 36 if name == "ILI" else 96
    for split in config(tmp_path, name).split(data, horizon, context=context):
        assert split.train_end - context - horizon + 1 == train
        assert (len(split.validation), len(split.test)) == (validation, test)


def test_every_recipe_splits_at_each_of_its_horizons() -> None:
    for recipe in RECIPES.values():
        borders = recipe.borders(966 if recipe.frequency == "W" else 70000)
        for horizon in (*recipe.horizons, *recipe.koopa_horizons):
            assert borders.train < borders.validation - horizon < borders.test - horizon


def test_dates_that_jump_are_counted_and_fill_nothing_in(tmp_path: Path) -> None:
    table = official(tmp_path, "Weather").drop(index=[100, 101, 5000])
    table.to_csv(tmp_path / RECIPES["Weather"].file, index=False)
    data = config(tmp_path, "Weather", standardise=False).load()
    assert data.record["irregular_steps"] == 2
    assert data.lengths.tolist() == [len(table)] * 3
    np.testing.assert_allclose(data.series[1].target, table.HUFL, rtol=1e-6)


def test_the_file_may_lie_directly_in_the_folder_and_its_absence_is_told(tmp_path: Path) -> None:
    official(tmp_path, "ILI")
    assert config(tmp_path / "illness", "ILI").load().frequency == "W-TUE"
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, "ETTh2").load()
    expected = "neither ETT-small/ETTh2.csv nor ETTh2.csv is there, the official file of ETTh2"
    assert str(caught.value) == f"task.data.path {tmp_path}: {expected}"


def test_files_that_are_not_the_official_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / RECIPES["ETTh1"].file
    table = official(tmp_path, "ETTh1", rows=14399)

    def refusal() -> str:
        with pytest.raises(ConfigError) as caught:
            config(tmp_path, "ETTh1").load()
        return str(caught.value)

    assert refusal() == f"{file}: 14399 rows; the splits of ETTh1 need 14400"
    table.drop(columns="date").to_csv(file, index=False)
    assert refusal() == f"{file}: no column 'date'; it has 0, HUFL, OT"
    wrong = official(tmp_path, "ETTh1")
    wrong.loc[17, "OT"] = np.nan
    wrong.to_csv(file, index=False)
    assert refusal() == f"{file}, row 17: OT is missing; the official file has every value"
    wrong["date"] = pd.date_range("2016-07-01", periods=len(wrong), freq="30min")
    wrong.to_csv(file, index=False)
    assert refusal() == f"{file}: its dates are mostly 0 days 00:30:00 apart, and should be 0 days 01:00:00 apart"
