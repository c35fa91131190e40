"""Labelled images of any source: where each is, what it shows, and which split it is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxscore.vision.sources.parquet import RowGroups
from proxscore.vision.splits import Rows

CHUNK = 256  # images that a process is given at once
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Picture:
    """An image as it lies there.

    Attributes:
        content: a file, encoded bytes, or pixels of uint8 (H, W) or (H, W, 3); none: there is none.
        where: how errors name it.
        path: what the table calls it.
    """

    content: Path | bytes | NDArray[np.uint8] | None
    where: str
    path: str


class Pictures(ABC):
    """The images of a source, by row. What :meth:`part` gives is small enough to be sent to another process."""

    #: Whether rows may be taken in any order at no cost; otherwise they are kept in that of the source.
    any_order: bool = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def part(self, rows: Rows) -> Pictures:
        """These rows alone."""

    @abstractmethod
    def read(self) -> Iterable[Picture]:
        """All images, in order; what they hold is read as one goes on."""

    def chunks(self) -> list[Rows]:
        """All rows in pieces, each of which is read at once."""
        return np.array_split(np.arange(len(self)), -(-len(self) // CHUNK))


@dataclass(frozen=True)
class FilePictures(Pictures):
    """Files, and their names in the table."""

    files: list[Path]
    names: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def part(self, rows: Rows) -> FilePictures:
        return FilePictures([self.files[row] for row in rows], [self.names[row] for row in rows])

    def read(self) -> list[Picture]:
        return [Picture(file, str(file), name) for file, name in zip(self.files, self.names, strict=True)]


@dataclass(frozen=True)
class ArrayPictures(Pictures):
    """Pixels in memory, (N, H, W) or (N, H, W, 3), as parts of one source that are named in errors."""

    parts: list[tuple[str, str, NDArray[np.uint8]]]  # how errors name it, how the table does, pixels
    rows: Rows | None = None  # of a part of the source: their numbers in it

    def __len__(self) -> int:
        return sum(len(pixels) for _, _, pixels in self.parts)

    def part(self, rows: Rows) -> ArrayPictures:
        found, first = [], 0
        for where, name, pixels in self.parts:
            for row in rows[(rows >= first) & (rows < first + len(pixels))]:
                own = int(row) - first
                found.append((int(row), (f"{where}, row {own}", f"{name}-{own:06d}.png", pixels[own : own + 1])))
            first += len(pixels)
        by_row = dict(found)
        return ArrayPictures([by_row[int(row)] for row in rows], rows)

    def read(self) -> list[Picture]:
        return [Picture(pixels[0], where, name) for where, name, pixels in self.parts]


@dataclass(frozen=True)
class TablePictures(Pictures):
    """Rows of Parquet files: all, or some of each of the tables."""

    tables: list[RowGroups]
    counts: list[int]  # rows of each table
    rows: Rows | None = None

    any_order = False  # a row group is read whole

    def __len__(self) -> int:
        return sum(self.counts) if self.rows is None else len(self.rows)

    def part(self, rows: Rows) -> TablePictures:
        return TablePictures(self.tables, self.counts, rows)

    def read(self) -> Iterator[Picture]:
        assert self.rows is not None
        first = 0
        for table, count in zip(self.tables, self.counts, strict=True):
            own = self.rows[(self.rows >= first) & (self.rows < first + count)] - first
            changes = np.flatnonzero(np.diff(table.of(own))) + 1
            for rows in np.split(own, changes):  # of one row group, which is held alone
                for content, where in table.images(rows):
                    yield Picture(content, where, Path(where).name)
            first += count

    def chunks(self) -> list[Rows]:
        starts = np.cumsum([0, *self.counts])
        firsts = np.concatenate([start + table.firsts for start, table in zip(starts, self.tables, strict=False)])
        return [rows for rows in np.split(np.arange(starts[-1]), np.unique(firsts)[1:]) if len(rows)]


@dataclass(frozen=True)
class Collected:
    """A source of labelled images.

    Attributes:
        pictures: N of them.
        labels: of each, its classes, in ascending order: one, or, of a multi-label source, any number.
        classes: names.
        splits: of each, its split, where the source has any; none: it has none.
        multi_label: whether an image may have any number of labels.
        kind: of the source, for the record.
        values: (N, D) numbers in place of labels, which are then empty; ``classes`` names them.
    """

    pictures: Pictures
    labels: list[tuple[int, ...]]
    classes: tuple[str, ...]
    splits: list[str] | None
    multi_label: bool
    kind: str
    values: NDArray[np.float32] | None = None

    @property
    def targets(self) -> list[tuple[Any, ...]]:
        """What each image is to be told by: its classes, or its numbers."""
        return list(self.labels) if self.values is None else [tuple(row) for row in self.values.tolist()]

    def strata(self, rows: Rows) -> Rows:
        """A class of each of these rows to stratify by: its label, or the rarest of its labels (if none, one more class)."""
        counts = np.bincount([label for labels in self.labels for label in labels], minlength=len(self.classes) + 1)
        rarest = [min(self.labels[row], key=lambda label: counts[label], default=len(self.classes)) for row in rows]
        return np.array(rarest, dtype=np.int64)


def named_classes(labels: Sequence[Any]) -> tuple[str, ...]:
    """The sorted distinct labels as names of classes; numbers are sorted as such."""
    found = {str(label) for label in labels}
    if all(name.isascii() and name.isdigit() and str(int(name)) == name for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))
