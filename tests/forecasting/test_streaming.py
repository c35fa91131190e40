"""Tables of many series that are read some series at a time: the same series, the same messages, whatever the row groups."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxscore.config import ConfigError
from proxscore.forecasting import streaming
from proxscore.forecasting.remarks import gathered
from proxscore.forecasting.sources.table import SeriesTableConfig, read_ids, read_table
from proxscore.forecasting.streaming import SeriesStream


def table(count: int = 7) -> pd.DataFrame:
    """Series of unequal length, by two id columns, one of them a category and one of whole numbers."""
    rows = []
    for number in range(count):
        steps = 4 + 3 * number
        times = pd.date_range("2024-01-01", periods=steps, freq="h") + pd.Timedelta(hours=number)
        values = np.arange(steps) + 100.0 * number
        rows.append(pd.DataFrame({"shop": f"s{number % 3}", "item": number, "timestamp": times, "target": values}))
    return pd.concat(rows, ignore_index=True)


def write(folder: Path, frame: pd.DataFrame, cut: int, groups: int) -> SeriesTableConfig:
    folder.mkdir()
    for number, first in enumerate(range(0, len(frame), cut)):
        part = pa.Table.from_pandas(frame.iloc[first : first + cut], preserve_index=False)
        place = part.column_names.index("shop")
        part = part.set_column(place, "shop", part.column("shop").dictionary_encode())
        pq.write_table(part, folder / f"{number:03d}.parquet", row_group_size=groups)
    return SeriesTableConfig(path=folder, id_columns=["shop", "item"], static_categories=["shop"])


@pytest.mark.parametrize(("cut", "groups", "read", "batch"), [(500, 500, 500, 3), (20, 6, 5, 2), (11, 3, 2, 1)])
def test_batches_are_the_series_of_the_whole_table(
    cut: int, groups: int, read: int, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "ROWS", read)
    config = write(tmp_path / "series", table(), cut, groups)
    whole, stream = config.load("h").series, SeriesStream.of(config)
    assert stream is not None
    assert (stream.series, stream.apart) == (7, None)
    batches = list(stream.each("h", lambda data: data, [], batch))
    assert [len(each.series) for each in batches] == [min(batch, 7 - first) for first in range(0, 7, batch)]
    found = [each for data in batches for each in data.series]
    for one, other in zip(found, whole, strict=True):
        assert (one.id, one.start) == (other.id, other.start)
        np.testing.assert_array_equal(one.target, other.target)


def test_a_row_at_fault_is_called_by_its_file_and_number(tmp_path: Path) -> None:
    frame = table()
    frame.loc[30, "target"] = np.inf
    stream = SeriesStream.of(write(tmp_path / "series", frame, 20, 6))
    assert stream is not None
    failed: list[tuple[str, str]] = []
    list(stream.each("h", lambda data: data, failed, 2))
    ((_, reason),) = failed
    assert re.search(r"001.parquet, row 10: target is inf", reason)


def test_rows_that_lie_apart_are_found_in_the_first_pass(tmp_path: Path) -> None:
    frame = pd.concat([table(), table(1).assign(timestamp=lambda f: f["timestamp"] + pd.Timedelta(days=9))])
    stream = SeriesStream.of(write(tmp_path / "series", frame, 20, 6))
    assert stream is not None
    assert stream.apart is not None
    assert "series 's0/0' goes on in" in stream.apart
    assert stream.apart.endswith("row 11")


def test_other_tables_are_not_streamed(tmp_path: Path) -> None:
    config = write(tmp_path / "series", table(), 500, 500)
    assert SeriesStream.of(config.model_copy(update={"id_columns": []})) is None
    table().to_csv(tmp_path / "series.csv", index=False)
    assert SeriesStream.of(config.model_copy(update={"path": tmp_path / "series.csv"})) is None
    (tmp_path / "series" / "001.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ConfigError, match=r"001.parquet: not a readable table"):
        SeriesStream.of(config)
    with pytest.raises(ConfigError, match="no column 'price'"):
        SeriesStream.of(write(tmp_path / "more", table(), 500, 500).model_copy(update={"past_covariates": ["price"]}))


def test_rows_of_some_series_are_read_from_their_row_groups_alone(tmp_path: Path) -> None:
    """Ids are text and whole numbers; others may be left out, none of these."""
    config = write(tmp_path / "series", table(), 20, 6)
    for text in (True, False):
        if text:  # plain text, which has least and largest values by row group
            for file in (tmp_path / "series").iterdir():
                pq.write_table(
                    pq.read_table(file).cast(
                        pa.schema(
                            [
                                ("shop", pa.string()),
                                ("item", pa.int64()),
                                ("timestamp", pa.timestamp("ns")),
                                ("target", pa.float64()),
                            ]
                        )
                    ),
                    file,
                    row_group_size=6,
                )
        found = read_table(config, config.path, [("s1", "1"), ("s2", "2")]).to_pandas()
        whole = read_table(config, config.path).to_pandas()
        assert set(found["item"]) == {"1", "2"}
        expected = whole[whole["item"].isin(["1", "2"])].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected)
    ids = read_ids(config, config.path)
    assert ids is not None
    pd.testing.assert_frame_equal(ids.to_pandas(), whole[["shop", "item"]])
    assert read_ids(config.model_copy(update={"id_columns": []}), config.path) is None


def test_warnings_of_many_batches_are_said_once() -> None:
    log = logging.getLogger("proxscore.forecasting.sources.table")
    with gathered() as held:
        for count in (3, 5):
            log.warning("%d series are constant", count)
            log.warning("the same")
    assert held.lines() == ["3 series are constant; and the like in 1 more batches of series", "the same"]
