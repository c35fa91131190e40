"""Forecasts joined with the rows that come true: every one matches, for each frequency, time zone and switch of the clock."""

from __future__ import annotations

import itertools
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch

from proxscore.config import ConfigError
from proxscore.forecasting.distributions import Normal
from proxscore.forecasting.forecasts import table
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.sources.table import SeriesTableConfig

HORIZON = 14
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Los_Angeles", "Asia/Tokyo", "Asia/Kolkata"]
ZONES += ["Australia/Sydney", "Pacific/Auckland", "Pacific/Honolulu", "-03:00", "+05:30"]
HOURS = ["10s", "15min", "h", "2h"]
DAYS = ["D", "2D", "W-MON", "W-SUN", "B", "2B"]
UNITS = ["MS", "ME", "2ME", "QS-FEB", "QE-DEC", "YS-JAN", "YS-APR", "YE-DEC", "YE-JUN"]
PLACES = ["BMS", "BME", "BQS-JAN", "BQE-DEC", "BYE-DEC", "WOM-3FRI", "WOM-1MON"]
FREQUENCIES = [*HOURS, *DAYS, *UNITS, *PLACES]
SWITCHES = ["2024-03-05", "2024-10-22"]  # in a month from there every zone with summer time has switched


def stamps(frequency: str, zone: str | None, start: str, count: int = 60) -> pd.DatetimeIndex:
    """Of pandas; hours by the instant, days and longer on the wall."""
    if zone is not None and frequency in HOURS:
        return pd.date_range(start, periods=count, freq=frequency, tz=zone)
    times = pd.date_range(start, periods=count, freq=frequency)
    if zone is None:
        return times
    return times.tz_localize(zone, nonexistent="shift_forward", ambiguous=np.ones(count, dtype=bool))


def rows(times: Any, name: str = "a") -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=len(times)) + 10
    return pd.DataFrame({"series": name, "timestamp": times, "target": values})


def load(path: Path, **settings: Any) -> SeriesData:
    return SeriesTableConfig(kind="table", path=path, id_columns=["series"], **settings).load()


def forecast(data: SeriesData, horizon: int = HORIZON) -> pa.Table:
    """What comes after the data, of any distribution."""
    places = torch.tensor([[[n], [len(each)]] for n, each in enumerate(data.series)], dtype=torch.float32)
    targets = torch.cat([torch.zeros(len(places), 2, horizon), places.expand(-1, -1, horizon)], 1)
    return table(ForecastPredictive(Normal(), torch.ones(1, len(places), horizon, 2), None, targets), data, [0.5])


def matched(frame: pd.DataFrame, folder: Path, **settings: Any) -> SeriesData:
    """All but the last rows of each series are known; the forecasts' join with those must have every one of them."""
    late = frame.groupby("series").cumcount(ascending=False) < HORIZON
    whole = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(whole.filter(pa.array(~late)), folder / "known.parquet")
    data = load(folder / "known.parquet", **settings)
    assert sum(len(each) for each in data.series) == (~late).sum()  # no step was invented, and none lost
    found = forecast(data)
    joined = whole.filter(pa.array(late)).join(found, keys=["series", "timestamp"], join_type="inner")
    assert joined.num_rows == late.sum() == HORIZON * frame["series"].nunique()
    frames = frame[late].merge(found.to_pandas(), on=["series", "timestamp"])
    assert len(frames) == late.sum()
    assert sorted(frames["step"]) == sorted(list(range(1, HORIZON + 1)) * frame["series"].nunique())
    return data


@pytest.mark.parametrize(("frequency", "start"), list(itertools.product(FREQUENCIES, SWITCHES)))
def test_forecasts_meet_the_rows_that_follow_in_every_zone(frequency: str, start: str, tmp_path: Path) -> None:
    for zone in [None, *ZONES]:
        times = stamps(frequency, zone, start)
        told = {"frequency": frequency} if frequency == "2B" else {}
        data = matched(rows(times), tmp_path, **told)
        if frequency not in HOURS:  # the model sees the calendar of the zone
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                assert data.series[0].start == times[0].tz_localize(None).to_period(data.series[0].start.freq)


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "America/Havana", "Asia/Beirut", "America/Santiago"])
@pytest.mark.parametrize("start", ["2017-10-01", "2018-02-01", "2018-03-01", "2018-08-01", "2018-10-20"])
@pytest.mark.parametrize("frequency", ["D", "W-SUN", "MS"])
def test_a_midnight_that_is_skipped_or_comes_twice_is_a_day_like_others(
    zone: str, start: str, frequency: str, tmp_path: Path
) -> None:
    times = stamps(frequency, zone, start)
    matched(rows(times), tmp_path)
    matched(rows(times[10:]), tmp_path)


TIMES = ["00:00", "02:30", "03:00", "23:59:59.999999999"]


def at(start: str, frequency: str, time: str) -> pd.DatetimeIndex:
    """Of a clock on the wall."""
    return pd.date_range(start, periods=60, freq=frequency) + pd.Timedelta(
        time if time.count(":") > 1 else f"{time}:00"
    )


@pytest.mark.parametrize("zone", [None, *ZONES])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("frequency", ["D", "B", "W-FRI", "ME", "QS-JAN"])
def test_the_time_of_the_day_stays(zone: str | None, time: str, frequency: str, tmp_path: Path) -> None:
    for start in SWITCHES:
        naive = at(start, frequency, time)
        if zone is None:
            matched(rows(naive), tmp_path)
            continue
        tried: list[pd.DatetimeIndex] = []
        for moved in ("shift_forward", pd.Timedelta("1h")):
            times = naive.tz_localize(zone, nonexistent=moved, ambiguous=np.ones(60, dtype=bool))
            if any(times.equals(each) for each in tried):  # none of them is skipped in this zone
                continue
            tried.append(times)
            if times[-HORIZON:].tz_localize(None).equals(naive[-HORIZON:]):
                matched(rows(times), tmp_path)


@pytest.mark.parametrize("frequency", ["h", "12h", "D", "MS"])
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_steps_of_another_clock_than_that_which_is_shown_are_found(frequency: str, zone: str, tmp_path: Path) -> None:
    """Days in UTC told in local time, and half days at noon and midnight."""
    for start in SWITCHES:
        matched(rows(pd.date_range(start, periods=60, freq=frequency, tz="UTC").tz_convert(zone)), tmp_path)
        if frequency == "12h":
            matched(rows(pd.date_range(start, periods=60, freq=frequency).tz_localize(zone)), tmp_path)


@pytest.mark.parametrize("number", [1, 15, 28, 29, 30, 31])
@pytest.mark.parametrize("units", [1, 3, 12])
def test_any_day_of_the_month_goes_on(number: int, units: int, tmp_path: Path) -> None:
    months = pd.period_range("2003-02", periods=60 * units, freq="M")[::units]
    times = pd.DatetimeIndex([pd.Timestamp(m.year, m.month, min(number, m.days_in_month)) for m in months])
    matched(rows(times), tmp_path)
    matched(rows(times.tz_localize("Europe/Berlin")), tmp_path)


def test_series_may_stand_at_other_places_and_begin_at_other_times(tmp_path: Path) -> None:
    starts, ends = stamps("MS", None, "2020-01-01"), stamps("ME", None, "2021-01-01", 50)
    matched(pd.concat([rows(starts), rows(ends, "b")]), tmp_path)
    mondays, fridays = stamps("W-MON", None, "2020-01-01"), stamps("W-FRI", None, "2020-03-01", 40)
    matched(pd.concat([rows(mondays), rows(fridays, "b")]), tmp_path, frequency="W")
    # Two months' ends that look like the last business day are that of the other series.
    short = stamps("BME", None, "2024-04-01", HORIZON + 2)
    matched(pd.concat([rows(stamps("BME", None, "2020-01-01")), rows(short, "b")]), tmp_path)


def test_dates_without_a_place_are_forecast_at_the_beginning_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    days = np.random.default_rng(0).integers(1, 29, 40)
    times = [pd.Timestamp(2020 + n // 12, 1 + n % 12, day) for n, day in enumerate(days)]
    rows(pd.DatetimeIndex(times)).to_parquet(tmp_path / "known.parquet")
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path / "known.parquet", frequency="ME")
    assert "1 of 1 series (the first: a) have timestamps at no one place" in caplog.text
    assert forecast(data).to_pandas()["timestamp"].tolist() == list(pd.date_range("2023-05-01", periods=14, freq="MS"))


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), *(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns"))])
def test_timestamps_go_out_in_the_type_that_came_in(kind: pa.DataType, tmp_path: Path) -> None:
    frame = pa.Table.from_pandas(rows(stamps("ME", None, "2020-01-01")), preserve_index=False)
    frame = frame.set_column(1, "timestamp", frame["timestamp"].cast(kind))
    pyarrow.feather.write_feather(frame.slice(0, 46), tmp_path / "known.arrow")
    found = forecast(load(tmp_path / "known.arrow"))
    assert found["timestamp"].type == kind
    assert frame.slice(46).join(found, keys=["series", "timestamp"], join_type="inner").num_rows == HORIZON


def test_dates_of_hourly_forecasts_have_hours(tmp_path: Path) -> None:
    frame = rows(pd.date_range("2020-01-01", periods=5, freq="D").date)
    frame.to_parquet(tmp_path / "known.parquet")
    found = forecast(load(tmp_path / "known.parquet", frequency="h"))
    assert found["timestamp"].to_pandas().tolist() == list(pd.date_range("2020-01-05 01:00", periods=14, freq="h"))


@pytest.mark.parametrize("frequency", ["h", "D", "W-MON", "B", "MS", "QE-DEC"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_offsets_in_text_are_read(frequency: str, zone: str, ending: str, tmp_path: Path) -> None:
    for start in SWITCHES:
        times = stamps(frequency, zone, start)
        frame = rows([str(time) for time in times])
        write = frame[:-HORIZON].to_csv if ending == "csv" else frame[:-HORIZON].to_parquet
        write(tmp_path / f"known.{ending}", index=False)
        for settings in ({"time_zone": zone}, {}):
            if not settings and frequency != "h" and zone != "Asia/Tokyo":
                continue  # see below
            data = load(tmp_path / f"known.{ending}", **settings)
            assert len(data.series[0]) == 46
            found = forecast(data).to_pandas()["timestamp"]
            assert (pd.DatetimeIndex(found) == times[-HORIZON:]).all()
            if settings:
                assert str(found.dt.tz) == zone


def test_days_with_offsets_that_change_need_the_zone_by_name(tmp_path: Path) -> None:
    path = tmp_path / "known.csv"
    rows([str(time) for time in stamps("D", "Europe/Berlin", "2024-03-20")]).to_csv(path, index=False)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}, row 12, series 'a': its time zone is +02:00, and +01:00 in {path}, row 0; steps of D follow one clock: "
        "set task.data.time_zone (Europe/Berlin)"
    )
    with pytest.raises(
        ConfigError, match=r"task\.data\.time_zone is 'Berlin', which is not known; Europe/Berlin would be"
    ):
        load(path, time_zone="Berlin")


def test_series_in_zones_of_their_own_keep_their_days_and_go_out_in_utc(tmp_path: Path) -> None:
    parts = [rows(stamps("D", zone, "2024-05-01"), zone) for zone in ("+09:00", "-05:00")]
    frame = pd.concat([part.assign(timestamp=[str(time) for time in part["timestamp"]]) for part in parts])
    known = frame.groupby("series").cumcount(ascending=False) >= HORIZON
    frame[known].to_csv(tmp_path / "known.csv", index=False)
    found = forecast(load(tmp_path / "known.csv"))
    assert found["timestamp"].type == pa.timestamp("ns", "UTC")
    late = frame[~known].assign(timestamp=pd.to_datetime(frame[~known]["timestamp"], utc=True))
    assert len(late.merge(found.to_pandas(), on=["series", "timestamp"])) == 2 * HORIZON


def test_times_with_and_without_a_zone_are_refused_together(tmp_path: Path) -> None:
    path = tmp_path / "known.csv"
    times = [str(time) for time in pd.date_range("2024-01-01", periods=30, freq="h")]
    rows([*times[:20], *(f"{time}+01:00" for time in times[20:])]).to_csv(path, index=False)
    with pytest.raises(ConfigError) as caught:
        load(path)
    expected = (
        f"{path}, row 0: timestamp has no time zone, and that of {path}, row 20 has one; all or none must have one"
    )
    assert str(caught.value) == expected
    rows(times).to_csv(path, index=False)
    with pytest.raises(ConfigError, match=r"row 0: timestamp has no time zone; leave out task\.data\.time_zone"):
        load(path, time_zone="Europe/Berlin")
    unknown = pa.Table.from_pandas(rows(pd.date_range("2024-01-01", periods=30, freq="h")), preserve_index=False)
    unknown = unknown.set_column(1, "timestamp", unknown["timestamp"].cast(pa.timestamp("ns", "Mars/Olympus")))
    pq.write_table(unknown, tmp_path / "mars.parquet")
    with pytest.raises(
        ConfigError, match=r"row 0: column 'timestamp' is of time zone 'Mars/Olympus', which is not known"
    ):
        load(tmp_path / "mars.parquet")


def test_hours_of_a_wall_clock_without_a_zone_are_as_they_are_written(tmp_path: Path) -> None:
    matched(rows(pd.date_range("2024-03-30 00:30", periods=60, freq="h")), tmp_path)
