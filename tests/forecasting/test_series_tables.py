"""Series from long tables, and each thing that may be wrong with one."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from gluonts.dataset.pandas import PandasDataset

from proxscore.config import ConfigError
from proxscore.forecasting.series import SeriesData
from proxscore.forecasting.sources.table import SeriesTableConfig
from proxscore.forecasting.table_files import read_file

WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "parquet": pq.write_table,
    "csv": pyarrow.csv.write_csv,
    "arrow": lambda table, path: pyarrow.feather.write_feather(table, path, compression="uncompressed"),
    "feather": pyarrow.feather.write_feather,
}


def frame(series: tuple[str, ...] = ("a", "b"), steps: int = 30, frequency: str = "h") -> pd.DataFrame:
    """Series one after the other; each starts a step later than the one before."""
    rng = np.random.default_rng(0)
    parts = []
    for number, name in enumerate(series):
        times = pd.date_range("2024-03-01", periods=steps + number, freq=frequency)[number:]
        parts.append(
            pd.DataFrame(
                {
                    "id": name,
                    "timestamp": times,
                    "target": rng.normal(100, 10, steps),
                    "price": rng.normal(size=steps),
                    "holiday": rng.random(steps) < 0.2,
                    "wind": rng.normal(size=steps),
                    "region": f"region {(number + 1) % 2}",
                    "size": 2.5 * (number + 1),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def write(table: pd.DataFrame, path: Path) -> Path:
    WRITERS[path.suffix.removeprefix(".")](pa.Table.from_pandas(table, preserve_index=False), path)
    return path


def load(path: Path, **settings: Any) -> SeriesData:
    return SeriesTableConfig(kind="table", path=path, **{"id_columns": ["id"], **settings}).load()


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FEATURES = {
    "known_covariates": ["price", "holiday"],
    "past_covariates": ["wind"],
    "static_categories": ["region"],
    "static_reals": ["size"],
}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("frequency", ["15min", "h", "D", "W-WED", "MS", "QE-DEC"])
def test_series_of_a_table_are_those_that_gluonts_reads_from_it(tmp_path: Path, ending: str, frequency: str) -> None:
    table = frame(frequency=frequency)
    data = load(write(table, tmp_path / f"table.{ending}"), **FEATURES)
    period = data.series[0].start.freqstr
    static = pd.DataFrame({"region": pd.Categorical(["region 1", "region 0"]), "size": [2.5, 5.0]}, index=["a", "b"])
    theirs = PandasDataset.from_long_dataframe(
        table.astype({"holiday": float}),
        item_id="id",
        timestamp="timestamp",
        target="target",
        freq=period,
        feat_dynamic_real=["price", "holiday"],
        past_feat_dynamic_real=["wind"],
        static_features=static,
    )
    entries = data.to_gluonts()
    by_id = {entry["item_id"]: entry for entry in theirs}
    assert [entry["item_id"] for entry in entries] == ["a", "b"]
    assert by_id.keys() == {"a", "b"}
    for entry in entries:
        other = by_id[entry["item_id"]]
        assert entry.keys() == other.keys() - {"feat_dynamic_cat", "past_feat_dynamic_cat"}
        assert entry["start"] == other["start"]
        for key in entry.keys() - {"item_id", "start"}:
            np.testing.assert_allclose(entry[key], np.asarray(other[key]).astype(np.float64), rtol=1e-6, err_msg=key)
    assert data.categories == {"region": ("region 0", "region 1")}
    assert data.cardinalities == (2,)
    for each in data.series:
        assert each.target.dtype == each.known.dtype == each.past.dtype == each.static_real.dtype == np.float32


def test_interleaved_rows_in_several_files_are_the_series_of_one_sorted_table(tmp_path: Path) -> None:
    whole = load(write(frame(), tmp_path / "whole.parquet"), **FEATURES)
    folder = tmp_path / "folder"
    folder.mkdir()
    by_time = frame().sort_values("timestamp", kind="stable")
    for number, part in enumerate(np.array_split(np.arange(len(by_time)), 3)):
        write(by_time.iloc[part], folder / f"{number}.{'parquet' if number else 'csv'}")
    pieces = load(folder, **FEATURES)
    assert pieces.record | {"files": 0} == whole.record | {"files": 0}
    assert [Path(file).name for file in pieces.record["files"]] == ["0.csv", "1.parquet", "2.parquet"]


def test_gaps_and_null_targets_are_missing_and_counted(tmp_path: Path) -> None:
    table = frame(frequency="D")
    table.loc[[4, 5, 40], "target"] = np.nan
    table = table.drop(index=[10, 11, 12, 35])
    data = load(write(table, tmp_path / "table.parquet"))
    for each in data.series:
        own = table[table.id == each.id].set_index("timestamp").target.asfreq("D")
        np.testing.assert_array_equal(each.target, own.to_numpy(dtype=np.float32))
        assert each.start == pd.Period(own.index[0], "D")
    assert data.record["filled_gaps"] == 4
    assert data.record["missing"] == 7
    assert data.record["frequency"] == "D"


def test_rows_after_the_last_target_give_the_future_of_known_covariates(tmp_path: Path) -> None:
    table = frame()
    table.loc[(table.id == "a") & (table.index >= 25), ["target", "wind"]] = np.nan
    path = write(table, tmp_path / "table.csv")
    data = load(path, known_covariates=["price"], past_covariates=["wind"])
    first, second = data.series
    assert (len(first), first.known.shape, first.past.shape) == (25, (1, 30), (1, 25))
    assert (len(second), second.known.shape) == (30, (1, 30))
    assert data.record["future_rows"] == 5
    assert data.record["missing"] == 0
    assert data.to_gluonts()[0]["feat_dynamic_real"].shape == (1, 25)
    np.testing.assert_allclose(first.known[0], table.price[:30], rtol=1e-6)
    with pytest.raises(ConfigError) as caught:
        data.to_gluonts(horizon=3)
    expected = "known covariates price end 0 steps after the target; a forecast of 3 steps needs them 3 steps after it"
    assert str(caught.value) == f"series 'b': {expected}"
    alone = load(write(table[:30], tmp_path / "alone.csv"), known_covariates=["price"])
    assert alone.to_gluonts(horizon=3)[0]["feat_dynamic_real"].shape == (1, 28)


def test_a_series_is_named_by_its_id_columns_or_the_target(tmp_path: Path) -> None:
    table = frame().assign(store=lambda t: np.where(t.index % 2, "001", "010"))
    path = write(table, tmp_path / "table.csv")
    two = load(path, id_columns=["id", "store"], static_categories=["store"])
    assert [each.id for each in two.series] == ["a/010", "a/001", "b/010", "b/001"]
    assert two.categories == {"store": ("001", "010")}
    assert two.frequency == "2h"
    one = load(write(table[:30], tmp_path / "one.csv"), id_columns=[])
    assert [each.id for each in one.series] == ["target"]
    clash = table[:4].assign(id=["a/b", "a/b", "a", "a"], store=["c", "c", "b/c", "b/c"])
    message = refusal(write(clash, tmp_path / "clash.csv"), id_columns=["id", "store"], frequency="h")
    assert message == 'task.data.id_columns: two series have one name when their ids are joined by "/"; rename one'


def test_rows_out_of_order_are_refused_by_row_or_sorted(tmp_path: Path) -> None:
    table = frame()
    order = [*range(35), 36, 35, *range(37, 60)]
    path = write(table.iloc[order], tmp_path / "table.parquet")
    hint = "order the rows by time, or set task.data.sort: true"
    assert refusal(path) == (
        f"{path}, row 36, series 'b': its time 2024-03-01 06:00:00 is before 2024-03-01 07:00:00 of the row before; {hint}"
    )
    shuffled = write(table.sample(frac=1, random_state=0), tmp_path / "shuffled.parquet")
    in_order = load(write(table, tmp_path / "sorted.parquet"), **FEATURES)
    by_id = {each.id: each for each in load(shuffled, sort=True, **FEATURES).series}
    for each in in_order.series:
        np.testing.assert_array_equal(each.target, by_id[each.id].target)
        np.testing.assert_array_equal(each.known, by_id[each.id].known)


def test_two_rows_of_one_step_are_refused_by_row(tmp_path: Path) -> None:
    table = frame()
    path = write(table.iloc[[*range(40), 39, *range(40, 60)]], tmp_path / "table.csv")
    assert refusal(path) == (
        f"{path}, row 40, series 'b': time 2024-03-01 10:00:00 is in the same step of h as 2024-03-01 10:00:00 of row 39; "
        "keep one of the two"
    )
    days = frame(frequency="MS")
    days.loc[7, "timestamp"] = days.timestamp[6] + pd.Timedelta("9D")
    assert (
        "row 7, series 'a': time 2024-09-10 00:00:00 is in the same step of ME as 2024-09-01 00:00:00 of row 6"
        in refusal(write(days, path), frequency="ME")
    )


def test_a_time_off_the_grid_is_refused_by_row(tmp_path: Path) -> None:
    table = frame()
    table.loc[34, "timestamp"] += pd.Timedelta("20min")
    path = write(table, tmp_path / "table.csv")
    expected = (
        f"{path}, row 34, series 'b': time 2024-03-01 05:20:00 is no step of h from 2024-03-01 01:00:00; correct it"
    )
    assert refusal(path).startswith(expected)


def test_mixed_frequencies_are_refused_by_two_series_unless_one_is_given(tmp_path: Path) -> None:
    table = pd.concat([frame(("a",)), frame(("b",), 8, "D")], ignore_index=True)
    path = write(table, tmp_path / "table.parquet")
    assert refusal(path) == (
        f"{path}, row 30, series 'b': the frequency is D, and that of series 'a' is h; a table must have one frequency: "
        "split it, or set task.data.frequency"
    )
    given = load(path, frequency="h")
    assert given.lengths.tolist() == [30, 7 * 24 + 1]
    assert given.record["filled_gaps"] == 7 * 23


def test_a_frequency_that_times_do_not_tell_is_asked_for(tmp_path: Path) -> None:
    table = frame(("a", "b"), 10)
    table["timestamp"] = table.timestamp[0] + pd.to_timedelta(np.cumsum(np.arange(20) ** 3 + 1), "s")
    path = write(table, tmp_path / "table.parquet")
    message = f"{path}, row 0, series 'a': its timestamps tell no frequency; set task.data.frequency (h, D, ME, ...)"
    assert refusal(path) == message
    short = write(frame(("a", "b"), 2), path)
    message = "task.data.frequency: no series has three rows, which would tell it; set it (h, D, ME, ...)"
    assert refusal(short) == message
    assert load(short, frequency="h").lengths.tolist() == [2, 2]
    assert load(write(pd.concat([frame(("a",), 2), frame(("b",))]), path)).lengths.tolist() == [2, 30]
    assert refusal(path, frequency="hours").startswith("task.data.frequency 'hours' is unknown; use s, min, h,")


def test_times_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    table = frame(("a",))
    table.loc[29, "timestamp"] = pd.Timestamp("2214-03-01")
    path = write(table, tmp_path / "table.csv")
    assert "row 29, series 'a': 30 rows over 1665481 steps of h, from 2024-03-01" in refusal(path)
    table["timestamp"] = table.timestamp.astype(str)
    for value, text in [
        ("soon", "'soon'"),
        ("01/02/2024", "'01/02/2024'"),
        ("9999-01-01", "'9999-01-01'"),
        (None, "null"),
    ]:
        table.loc[3, "timestamp"] = value
        where = f"{write(table, tmp_path / 'text.parquet')}, row 3: timestamp is {text}; expected a time"
        assert refusal(tmp_path / "text.parquet").startswith(where)
    assert "row 0: target is '101.25730221093393'; expected a time" in refusal(
        path, timestamp_column="target", target_column="price"
    )
    path = write(table, tmp_path / "table.parquet")
    assert "column 'target' is double; expected dates" in refusal(
        path, timestamp_column="target", target_column="price"
    )
    counted = table.assign(timestamp=np.arange(len(table)) * 3600 + 1704067200)
    assert "timestamp is '1704067200'; expected a time" in refusal(write(counted, tmp_path / "counted.csv"))


def test_hours_in_text_and_in_time_zones_are_read_as_their_utc_time(tmp_path: Path) -> None:
    table = frame(("a",))
    plain = load(write(table, tmp_path / "plain.parquet"))
    zone = table.assign(timestamp=table.timestamp.dt.tz_localize("UTC").dt.tz_convert("Asia/Kolkata"))
    slashes = table.assign(timestamp=[f"{t.year}/{t.month}/{t.day} {t.hour}:00" for t in table.timestamp])
    offset = table.assign(timestamp=[(t + pd.Timedelta("2h")).isoformat() + "+02:00" for t in table.timestamp])
    for name, other in {"zone": zone, "slashes": slashes, "offset": offset}.items():
        assert load(write(other, tmp_path / f"{name}.parquet")).record["sha256"] == plain.record["sha256"]
    dates = table.assign(timestamp=pd.date_range("2024-03-01", periods=30).date)
    assert load(write(dates, tmp_path / "dates.parquet")).frequency == "D"


@pytest.mark.parametrize("column", ["target", "price"])
def test_values_that_are_no_numbers_are_refused_by_row(tmp_path: Path, column: str) -> None:
    table = frame()
    for value in (np.inf, -1e39):
        table.loc[7, column] = value
        for ending in ("csv", "parquet"):
            path = write(table, tmp_path / f"table.{ending}")
            message = f"{path}, row 7: {column} is {value}; expected a number that float32 can hold"
            assert refusal(path, known_covariates=["price"]) == message
    texts = table.assign(**{column: [str(value) for value in table[column]]})
    texts.loc[7, column] = "n.d."
    for ending in ("csv", "parquet"):
        path = write(texts, tmp_path / f"table.{ending}")
        message = f"{path}, row 7: {column} is 'n.d.', which is text; expected a number"
        assert refusal(path, known_covariates=["price"]) == message


@pytest.mark.parametrize("setting", ["known_covariates", "past_covariates"])
def test_missing_covariates_are_refused_by_row(tmp_path: Path, setting: str) -> None:
    table = frame()
    table.loc[42, "wind"] = np.nan
    path = write(table, tmp_path / "table.csv")
    message = f"{path}, row 42, series 'b': covariate wind is missing; every row needs it"
    assert refusal(path, **{setting: ["wind"]}) == message
    write(table.drop(index=[42]), path)
    expected = (
        f"{path}, row 41, series 'b': no row for the step after 2024-03-01 12:00:00, so covariate wind is missing there"
    )
    assert refusal(path, **{setting: ["wind"]}).startswith(expected)


def test_static_features_must_be_there_and_constant(tmp_path: Path) -> None:
    table = frame()
    table.loc[33, "region"] = "elsewhere"
    table.loc[44, "size"] = 7.0
    path = write(table, tmp_path / "table.parquet")
    assert refusal(path, static_categories=["region"]) == (
        f"{path}, row 33, series 'b': static feature region is elsewhere, and region 0 in {path}, row 30; it must be the same "
        "in all rows of a series"
    )
    assert f"{path}, row 44, series 'b': static feature size is 7.0, and 5.0" in refusal(path, static_reals=["size"])
    table.loc[31, ["region", "size"]] = [None, np.nan]
    write(table, path)
    assert refusal(path, static_categories=["region"]).startswith(f"{path}, row 31: region is null")
    assert refusal(path, static_reals=["size"]) == f"{path}, row 31, series 'b': static feature size is missing"


def test_constant_series_are_kept_counted_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = frame()
    table.loc[table.id == "b", "target"] = 3.0
    table.loc[35, "target"] = np.nan
    with caplog.at_level(logging.WARNING):
        data = load(write(table, tmp_path / "table.parquet"))
    assert data.record["constant_series"] == 1
    assert len(data.series) == 2
    assert "1 of 2 series are constant (the first: b)" in caplog.text


def test_a_series_without_targets_and_an_empty_table_are_refused(tmp_path: Path) -> None:
    table = frame()
    table.loc[table.id == "b", "target"] = np.nan
    path = write(table, tmp_path / "table.parquet")
    message = f"{path}, row 30, series 'b': the series has no target value; give it one, or leave it out"
    assert refusal(path) == message
    assert refusal(write(table[:0], path)) == f"task.data.path {path}: the table has no rows"
    table.loc[5, "id"] = None
    assert refusal(write(table, path)) == f"{path}, row 5: id is null; every row needs a value there"


def test_files_and_columns_at_fault_are_named(tmp_path: Path) -> None:
    path = write(frame(), tmp_path / "table.parquet")
    columns = "id, timestamp, target, price, holiday, wind, region, size"
    assert refusal(path, target_column="sales") == f"{path}: no column 'sales'; it has {columns}"
    message = "task.data.past_covariates: column 'target' is in target_column too; name it once"
    assert refusal(path, past_covariates=["target"]) == message
    message = "task.data.static_categories: column 'wind' is in past_covariates too; name it once"
    assert refusal(path, past_covariates=["wind"], static_categories=["wind"]) == message
    absent = tmp_path / "absent"
    assert refusal(absent) == f"task.data.path {absent}: no such file or folder"
    absent.mkdir()
    assert refusal(absent).startswith(f"task.data.path {absent}: no file in it ends in .parquet, .csv,")
    other = tmp_path / "table.xlsx"
    other.touch()
    assert refusal(other).startswith(f"task.data.path {other}: a table's file must end in .parquet")
    for ending in ("parquet", "arrow", "csv"):
        broken = tmp_path / f"broken.{ending}"
        broken.write_bytes(b"\x00\x01" if ending != "csv" else b"a,b\n1,2,3\n")
        assert refusal(broken).startswith(f"{broken}: not a readable table: ")


def test_the_season_is_gluonts_own_unless_given(tmp_path: Path) -> None:
    path = write(frame(frequency="15min"), tmp_path / "table.parquet")
    assert load(path).season == 96
    assert load(path, season=672).season == 672


def test_a_pipe_and_a_table_that_inflates_without_an_end_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=r"a\.csv: is a pipe; give a regular file"):
        read_file(tmp_path / "a.csv", None, [], {})
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"x,y\n" + b"1,2\n" * 5_000_000, 1))
    assert read_file(tmp_path / "b.csv.gz", None, [], {}).num_rows == 5_000_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4_000_000))
    with pytest.raises(ConfigError, match=r"b\.csv\.gz: inflates to more than 1,000,000 bytes"):
        read_file(tmp_path / "b.csv.gz", None, [], {})
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"x,y\n1,2\n")[:-6])
    with pytest.raises(ConfigError, match=r"c\.csv\.gz: not a readable table"):
        read_file(tmp_path / "c.csv.gz", None, [], {})
