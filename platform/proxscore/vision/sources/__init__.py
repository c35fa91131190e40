"""Where images come from: one module per kind, registered here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxscore.vision.images import Source
from proxscore.vision.sources import digits, idx, image_folder, parquet

SOURCES: dict[str, Callable[[Any], Source]] = {
    "digits": digits.load,
    "idx": idx.load,
    "image_folder": image_folder.load,
    "parquet": parquet.load,
}
