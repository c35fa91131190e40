"""One look at every image: whether it can be read, its size and format, and a hash of what it shows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from proxscore.config import ConfigError
from proxscore.vision.decoding import UnreadableError, decoded
from proxscore.vision.preparation.collected import Collected, Picture, Pictures
from proxscore.vision.preparation.pool import in_order, progress


@dataclass(frozen=True)
class Seen:
    """What one look at an image found.

    Attributes:
        path: what the table calls it.
        reason: why it cannot be read; none: it can.
        sha256: of its size and its pixels as RGB, upright: the same picture in another lossless format has the same.
        size: (width, height), upright.
        format: its encoding; ``pixels`` of an array.
        length: bytes of its encoding, or of its pixels.
    """

    path: str
    reason: str | None = None
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    format: str = ""
    length: int = 0


def examine(collected: Collected, workers: int) -> list[Seen]:
    """Look at all images of a source, in their order.

    Raises:
        ConfigError: a file cannot be opened, or no image can be read.
    """
    pictures = collected.pictures
    found: list[Seen] = []
    with progress(len(pictures), "reading") as bar:
        for seen in in_order(_examined, (pictures.part(rows) for rows in pictures.chunks()), workers):
            found += seen
            bar.update(len(seen))
    if all(seen.reason for seen in found):
        raise ConfigError(f"none of the {len(found)} images can be read; the first: {found[0].path}: {found[0].reason}")
    return found


def upright(picture: Picture) -> tuple[Image.Image, str]:
    """The decoded image, and the name of its format.

    Raises:
        UnreadableError, ConfigError: as :func:`proxscore.vision.decoding.decoded`.
    """
    if picture.content is None:
        raise UnreadableError(picture.where, "the image is null")
    if isinstance(picture.content, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(picture.content)), "pixels"
    return decoded(picture.content, picture.where)


def _examined(pictures: Pictures) -> list[Seen]:
    return [_seen(picture) for picture in pictures.read()]


def _seen(picture: Picture) -> Seen:
    try:
        image, kind = upright(picture)
        content = image.convert("RGB").tobytes()
    except UnreadableError as error:
        return Seen(picture.path, error.reason)
    digest = hashlib.sha256(f"{image.width}x{image.height} ".encode() + content).hexdigest()
    return Seen(picture.path, None, digest, image.size, kind, _length(picture.content))


def _length(content: Any) -> int:
    if isinstance(content, bytes):
        return len(content)
    return int(content.nbytes if isinstance(content, np.ndarray) else content.stat().st_size)


@dataclass(frozen=True)
class Duplicates:
    """Images that show the same.

    Attributes:
        groups: rows of each picture that is there more than once.
        within: by split, the rows beyond the first of each picture in it.
        across: pictures that are in more than one split.
        conflicting: pictures that are there with different labels.
    """

    groups: list[list[int]]
    within: dict[str, int]
    across: int
    conflicting: int


def duplicates(seen: Sequence[Seen], splits: dict[str, Any], labels: Sequence[tuple[Any, ...]]) -> Duplicates:
    """Find equal pictures by their hashes, within each split and between splits.

    Args:
        splits: rows of each split.
    """
    split_of = {int(row): split for split, rows in splits.items() for row in rows}
    by_hash: dict[str, list[int]] = {}
    for row in sorted(split_of):
        by_hash.setdefault(seen[row].sha256, []).append(row)
    groups = [rows for rows in by_hash.values() if len(rows) > 1]
    within = dict.fromkeys(splits, 0)
    for rows in groups:
        for split, count in Counter(split_of[row] for row in rows).items():
            within[split] += count - 1
    across = sum(len({split_of[row] for row in rows}) > 1 for rows in groups)
    return Duplicates(groups, within, across, sum(len({labels[row] for row in rows}) > 1 for rows in groups))
