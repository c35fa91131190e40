"""What is to be predicted, cut into pieces that workers read by themselves.

* a folder of images: their paths, in order;
* a CSV file with a column ``path`` (from the file's folder);
* Parquet files with a column ``image`` (encoded bytes, or a struct with ``bytes``) or ``path``;
* of series a long table, whose pieces are whole series.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxscore.config import ConfigError
from proxscore.config.files import check_regular
from proxscore.vision.inputs import files_in

ROWS = 1024  # of a piece; a multiple of the images that go through a network together
SERIES = 256


@dataclass(frozen=True)
class Piece:
    """A part of what is to be predicted.

    Attributes:
        number: among all.
        first: number of its first row (or series).
        names: paths of images, or names of series (a tuple of the values of their id columns).
        file, start, count: of a Parquet file its rows.
    """

    number: int
    first: int
    count: int
    names: tuple[Any, ...] = ()
    file: str | None = None
    start: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Piece:
        """From what ``asdict`` gave, as JSON has it."""
        names = tuple(tuple(name) if isinstance(name, list) else name for name in fields["names"])
        return cls(**{**fields, "names": names})

    def described(self) -> dict[str, Any]:
        """What tells it from another piece, as JSON has it."""
        return {"first": self.first, "count": self.count, "file": self.file, "start": self.start}


def image_pieces(source: Path, column: str | None, rows: int = ROWS) -> list[Piece]:
    """Cut a source of images.

    Args:
        column: of a table; by default ``image`` or ``path``.

    Raises:
        ConfigError: nothing there, or no such column; names the file.
    """
    if source.is_dir() and (tables := sorted(source.rglob("*.parquet"))):
        return _of_tables(tables, column, rows)
    if source.suffix.lower() == ".parquet":
        return _of_tables([source], column, rows)
    if source.is_dir():
        return _of_paths([str(path) for path in files_in(source)], rows)
    if source.suffix.lower() == ".csv":
        return _of_paths(_listed(source, column or "path"), rows)
    if source.is_file():
        return _of_paths([str(source)], rows)
    raise ConfigError(
        f"{source}: nothing there: give a folder of images, a CSV file with a column path, or Parquet files"
    )


def _of_paths(paths: Sequence[str], rows: int) -> list[Piece]:
    starts = range(0, len(paths), rows)
    return [
        Piece(number, first, len(paths[first : first + rows]), tuple(paths[first : first + rows]))
        for number, first in enumerate(starts)
    ]


def _listed(source: Path, column: str) -> list[str]:
    check_regular(source)
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or ()):
            raise ConfigError(f"{source}: no column {column!r}; it has {', '.join(reader.fieldnames or ())}")
        found = [str(source.parent.absolute() / (row[column] or "").strip()) for row in reader]
    if not found:
        raise ConfigError(f"{source}: has no rows")
    return found


def _of_tables(files: Sequence[Path], column: str | None, rows: int) -> list[Piece]:
    found: list[Piece] = []
    first = 0
    for file in files:
        try:
            metadata = pq.read_metadata(file)
            image_column(pq.read_schema(file).names, column, str(file))
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{file}: not a readable Parquet file: {' '.join(str(error).split())}") from error
        for start in range(0, metadata.num_rows, rows):
            count = min(rows, metadata.num_rows - start)
            found.append(Piece(len(found), first, count, file=str(file), start=start))
            first += count
    if not found:
        raise ConfigError(f"{files[0].parent}: the tables have no rows")
    return found


def image_column(names: Sequence[str], wanted: str | None, where: str) -> str:
    """The column that holds images.

    Raises:
        ConfigError: there is none of this name.
    """
    for name in (wanted,) if wanted is not None else ("image", "path"):
        if name in names:
            return name
    raise ConfigError(f"{where}: no column {wanted or 'image (or path)'}; it has {', '.join(names)}")


def images_of(piece: Piece, column: str | None, keep: Sequence[str]) -> tuple[list[Any], dict[str, list[Any]]]:
    """The images of a piece, and columns that go along: ``path`` where there is one, and those to keep."""
    if piece.file is None:
        return list(piece.names), {"path": list(piece.names)}
    schema = pq.read_schema(piece.file)
    name = image_column(schema.names, column, piece.file)
    for each in keep:
        if each not in schema.names:
            raise ConfigError(f"--keep {each}: {piece.file} has no such column; it has {', '.join(schema.names)}")
    table = _rows(piece, [name, *keep])
    images = table.column(name).to_pylist()
    along = {each: table.column(each).to_pylist() for each in keep}
    if pa.types.is_string(schema.field(name).type) or pa.types.is_large_string(schema.field(name).type):
        folder = Path(piece.file).parent
        images = [None if image is None else str(folder / image) for image in images]
        along = {"path": images} | along
    return images, along


def _rows(piece: Piece, columns: Sequence[str]) -> pa.Table:
    """The rows of a piece, from the row groups that hold them alone."""
    assert piece.file is not None
    file, seen, skipped = pq.ParquetFile(piece.file), 0, 0
    groups: list[int] = []
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if seen + rows > piece.start and seen < piece.start + piece.count:
            if not groups:
                skipped = seen
            groups.append(group)
        seen += rows
    return file.read_row_groups(groups, columns=list(dict.fromkeys(columns))).slice(piece.start - skipped, piece.count)


def series_pieces(names: Sequence[tuple[Any, ...]], series: int = SERIES) -> list[Piece]:
    """Cut a list of series."""
    return [
        Piece(number, first, len(names[first : first + series]), tuple(names[first : first + series]))
        for number, first in enumerate(range(0, len(names), series))
    ]


def fingerprints(source: Path, pieces: Sequence[Piece]) -> Iterator[Mapping[str, Any]]:
    """What tells this input from another: sizes and times of its files, or of the listed ones their number."""
    files = sorted({piece.file for piece in pieces if piece.file is not None}) or [str(source)]
    for name in files:
        state = Path(name).stat()
        size = state.st_size if Path(name).is_file() else sum(piece.count for piece in pieces)
        yield {"file": name, "size": size}
