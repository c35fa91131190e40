"""The files of a long table, read by pyarrow: which there are, what columns they have, and one of them as an Arrow table.

Files end in ``.parquet``, ``.csv``, ``.csv.gz``, ``.arrow``, ``.ipc`` or ``.feather`` (the Arrow file format). A folder
is the files in it, in the order of their names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq

from proxscore.config import ConfigError
from proxscore.config.files import Inflated, check_regular

_ENDINGS = (".parquet", ".csv", ".csv.gz", ".arrow", ".ipc", ".feather")


def find_files(path: Path, setting: str) -> list[Path]:
    """The file at ``path``, or the table's files in that folder by name.

    Raises:
        ConfigError: nothing there, no such file in the folder, or another ending. ``setting`` is named.
    """
    place = path.expanduser().absolute()
    if place.is_file():
        if not place.name.endswith(_ENDINGS):
            raise ConfigError(f"{setting} {place}: a table's file must end in {', '.join(_ENDINGS)}")
        return [place]
    if not place.is_dir():
        raise ConfigError(f"{setting} {place}: no such file or folder")
    files = sorted(file for file in place.iterdir() if file.name.endswith(_ENDINGS) and not file.name.startswith("."))
    if not files:
        raise ConfigError(f"{setting} {place}: no file in it ends in {', '.join(_ENDINGS)}")
    return files


def _filter(path: Path, wanted: Mapping[str, Collection[str]]) -> Any:
    """An expression that leaves out row groups by their least and largest values, and rows by what they are; none: all rows."""
    found, schema = None, pq.read_schema(path)
    for name, texts in wanted.items():
        kind = schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            continue
        values = pa.array(sorted(texts), pa.string()).cast(kind)
        least, largest = pc.min_max(values).values()
        field = pc.field(name)
        each = (field >= least) & (field <= largest) & field.isin(values)
        found = each if found is None else found & each
    return found


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuse a Parquet file that cannot be read, lacks a column, or has two of a name."""
    try:
        check_regular(path)
        check_names(path, pq.read_schema(path).names, names)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable table: {' '.join(str(error).split())}") from error


def read_file(
    path: Path, names: Sequence[str] | None, texts: Sequence[str], wanted: Mapping[str, Collection[str]]
) -> Any:
    """Columns of one file as an Arrow table; arguments as of :class:`proxscore.forecasting.columns.Columns`.

    Raises:
        ConfigError: it cannot be read, or lacks a column.
    """
    try:
        check_regular(path)
        if path.name.endswith(".parquet"):
            present = pq.read_schema(path).names
            table = None
        elif path.name.endswith((".csv", ".csv.gz")):
            options = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in texts})
            with Inflated(path) if path.name.endswith(".gz") else path.open("rb") as file:
                table = pyarrow.csv.read_csv(file, convert_options=options)
            present = table.column_names
        else:
            table = pyarrow.feather.read_table(path)
            present = table.column_names
        check_names(path, present, names or ())
        columns = list(dict.fromkeys(names)) if names is not None else present
        return (
            pq.read_table(path, columns=columns, filters=_filter(path, wanted))
            if table is None
            else table.select(columns)
        )
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable table: {' '.join(str(error).split())}") from error


def check_names(path: Path, present: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a file that lacks a column, or has two of a name."""
    for name in names:
        if name not in present:
            raise ConfigError(f"{path}: no column {name!r}; it has {', '.join(present)}")
        if list(present).count(name) > 1:
            raise ConfigError(f"{path}: two columns are called {name!r}; names must be unique")
