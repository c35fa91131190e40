"""What YAML, JSON and Python can say, but no setting can be: found before a tree is validated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_TEXT = 4096  # characters of a text
MAX_VALUES = 100_000  # of a tree
MAX_DEPTH = 30
SMALLEST, LARGEST = 1e-30, 1e30  # sizes of numbers with a point, other than zero


def fault(tree: Any) -> tuple[str, Any, str] | None:
    """The first value at fault: its dotted key, itself, and what would be right; none if all values may be settings."""
    for count, (key, value, depth) in enumerate(_walk("", tree, 0)):
        reason = _reason(value) if count < MAX_VALUES else f"more than {MAX_VALUES:,} values"
        if reason is None and depth > MAX_DEPTH:
            reason = f"nested deeper than {MAX_DEPTH} levels"
        if reason is not None:
            return key or "top level", value, reason
    return None


def _walk(key: str, value: Any, depth: int) -> Iterator[tuple[str, Any, int]]:
    yield key, value, depth
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(name, str) and _reason(name) is None:
                yield from _walk(f"{key}.{name}" if key else name, inner, depth + 1)
            else:
                yield f"{key}: the key {name!r:.200}" if key else f"the key {name!r:.200}", _Key(name), depth
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _walk(f"{key}.{number}", inner, depth + 1)


class _Key:
    """A key that is no text that can be a name."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def __repr__(self) -> str:
        return type(self.key).__name__


def _reason(value: Any) -> str | None:
    """Why a value, without what is in it, is no setting."""
    if value is None or isinstance(value, (bool, dict, list, tuple)):
        return None
    if isinstance(value, _Key):
        return "keys are names" if not isinstance(value.key, str) else _reason(value.key)
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else "more than 64 bits"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "numbers must be finite"
        # Beyond, squares and inverses of single precision are zero or infinite.
        return (
            None
            if value == 0 or SMALLEST <= abs(value) <= LARGEST
            else f"its size is not in {SMALLEST:g} to {LARGEST:g}"
        )
    if isinstance(value, (str, Path)):
        text = str(value)
        if len(text) > MAX_TEXT:
            return f"longer than {MAX_TEXT:,} characters"
        if any(ord(character) < 32 or 0xD800 <= ord(character) < 0xE000 for character in text):
            return "it has a character that belongs in no name or path"
        return None
    return f"a {type(value).__name__} is no setting; what is meant as text goes into quotes"
