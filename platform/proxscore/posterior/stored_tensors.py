"""Tensors from the files that :mod:`proxscore.posterior.shards` wrote, one by one, whole or the rows that a rank holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.posterior.shards import INDEX_FILE, OURS, SAVE, WEIGHTS_FILE

#: Bytes that are read of a file before it is opened anew: pages of an open file count as the process's own.
_WINDOW = 2**28


class StoredTensors:
    """The tensors of a folder, which are read one by one, whole or in rows.

    Attributes:
        shapes: by name.

    Raises:
        ConfigError: a file is missing or damaged, or does not fit the index; names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[tuple[str, int, int]]] = {}  # file, first row, rows
        self._open: tuple[str, Any] | None = None
        self._read = 0
        if (folder / INDEX_FILE).is_file():
            self._by_index()
        elif (folder / WEIGHTS_FILE).is_file():
            for name, shape in self._file(WEIGHTS_FILE).items():
                self.shapes[name] = shape
                self._pieces[name] = [(WEIGHTS_FILE, 0, shape[0] if shape else 1)]
        else:
            raise ConfigError(f"{folder}: no posterior there ({WEIGHTS_FILE} is missing)")

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or these rows of it, in memory of its own.

        Raises:
            ConfigError: its file is damaged.
        """
        shape = self.shapes[name]
        wanted = rows or slice(0, shape[0] if shape else 1)
        result = None
        for file, start, count in self._pieces[name]:
            low, high = max(start, wanted.start), min(start + count, wanted.stop)
            if low < high or result is None:
                piece = self._slice(file, name, slice(low - start, max(low, high) - start) if shape else None)
                if result is None:
                    result = torch.empty((wanted.stop - wanted.start, *shape[1:]) if shape else (), dtype=piece.dtype)
                if not shape:
                    result.copy_(piece)
                elif low < high:
                    result[low - wanted.start : high - wanted.start] = piece
        assert result is not None
        return result

    def _slice(self, file: str, name: str, rows: slice | None) -> Tensor:
        try:
            if self._open is None or self._open[0] != file or self._read > _WINDOW:
                self._open = None
                self._open, self._read = (file, safe_open(self.folder / file, framework="pt")), 0
            whole = self._open[1].get_slice(name)
            if rows is None:
                found = self._open[1].get_tensor(name)
            elif rows.start >= rows.stop or rows.start < 0:
                found = whole[0:0]
            else:
                found = whole[rows.start : rows.stop]
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{self.folder}: damaged posterior: {file}: {' '.join(str(error).split())}") from None
        self._read += found.nbytes
        return found

    def _by_index(self) -> None:
        held: dict[str, dict[str, tuple[int, ...]]] = {}
        try:
            index = json.loads((self.folder / INDEX_FILE).read_text())
            files, tensors = index["files"], index["tensors"]
            if index["format"] != 1 or not all(OURS.fullmatch(file) for file in files):
                raise ValueError("not of this format")
            described = {
                name: (tuple(map(int, entry["shape"])), {str(f): int(row) for f, row in entry["rows"].items()})
                for name, entry in tensors.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(INDEX_FILE, f"cannot be read ({type(error).__name__})") from None
        for file in files:
            if not (self.folder / file).is_file():
                raise self._damaged(file, "is missing")
            held[file] = self._file(file, index.get(SAVE))
        for name, (shape, rows) in described.items():
            self.shapes[name], self._pieces[name] = shape, []
            end = 0
            for file, first in sorted(rows.items(), key=lambda item: item[1]):
                found = held.get(file, {}).get(name)
                if found is None or len(found) != len(shape) or found[1:] != shape[1:] or first != end:
                    raise self._damaged(file, f"its rows of {name} are not those of {INDEX_FILE}")
                count = found[0] if found else 1
                self._pieces[name].append((file, first, count))
                end += count
            if not rows or end != (shape[0] if shape else 1):
                raise self._damaged(INDEX_FILE, f"rows of {name} are missing")
        surplus = sorted({name for names in held.values() for name in names} - described.keys())
        if surplus:
            raise self._damaged(INDEX_FILE, f"does not list {surplus[0]}")

    def _file(self, file: str, save: Any = None) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        try:
            with safe_open(self.folder / file, framework="pt") as found:
                if (found.metadata() or {}).get(SAVE) != save:
                    raise self._damaged(file, f"is of another save than {INDEX_FILE}")
                return {name: tuple(found.get_slice(name).get_shape()) for name in found.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise self._damaged(file, " ".join(str(error).split())) from None

    def _damaged(self, file: str, reason: str) -> ConfigError:
        return ConfigError(f"{self.folder}: damaged posterior: {file}: {reason}")
