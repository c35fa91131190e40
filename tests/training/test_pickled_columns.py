"""Ray Data knows a column type whose values are pickles: a table that holds one is refused or read as text, never executed."""

from __future__ import annotations

import os
import pickle
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from proxscore import config as configuration
from proxscore.config import ConfigError

ROWS = 400


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path, count: int) -> pa.Array:
    storage = pa.array([pickle.dumps(Payload(marker))] * count, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)


@pytest.mark.parametrize("column", ["image", "label"])
def test_images_and_labels_that_are_pickles_are_refused(column: str, tmp_path: Path) -> None:
    columns = {"image": pa.array([b"x"] * ROWS), "label": pa.array([row % 2 for row in range(ROWS)])}
    pq.write_table(pa.table(columns | {column: pickled(tmp_path / "marker", ROWS)}), tmp_path / "a.parquet")
    settings = ["task.data.kind=parquet", f"task.data.path={tmp_path}", "task.data.classes=2"]
    with pytest.raises(ConfigError, match=f"column '{column}' is extension"):
        configuration.load(None, settings).task.build()
    assert not (tmp_path / "marker").exists()
    column_of = pq.read_table(tmp_path / "a.parquet").column(column)
    column_of[0].as_py()
    assert (tmp_path / "marker").exists(), "the payload is none"


@pytest.mark.parametrize("column", ["item_id", "timestamp", "target"])
@pytest.mark.parametrize("ending", [".parquet", ".feather"])
def test_series_that_are_pickles_are_not_executed(column: str, ending: str, tmp_path: Path) -> None:
    columns = {
        "item_id": pa.array(["a"] * ROWS),
        "timestamp": pa.array([datetime(2020, 1, 1) + timedelta(hours=hour) for hour in range(ROWS)]),
        "target": pa.array([float(hour % 24) for hour in range(ROWS)]),
    }
    table, path = pa.table(columns | {column: pickled(tmp_path / "marker", ROWS)}), tmp_path / f"a{ending}"
    pq.write_table(table, path) if ending == ".parquet" else feather.write_feather(table, path)
    settings = ["task.kind=forecasting", "task.data.kind=table", f"task.data.path={path}", "task.horizon=12"]
    try:
        configuration.load(None, settings).task.build()
    except ConfigError as error:
        assert f"column '{column}' is extension" in str(error)  # noqa: PT017
    assert not (tmp_path / "marker").exists()
