"""Parquet shards of encoded images and labels, in the form that Hugging Face's ``datasets`` writes and reads."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from proxscore.vision.preparation.collected import Picture, Pictures
from proxscore.vision.preparation.examining import upright
from proxscore.vision.splits import Rows

QUALITY = 95  # of JPEG, without subsampling of colours
_GROUP_BYTES, _GROUP_ROWS = (
    2**23,
    1000,
)  # of a row group, at most: training mixes rows over groups, and reads them whole
METADATA_KEY = b"proxscore"


@dataclass(frozen=True)
class Shard:
    """A file to write: its rows, in order.

    Attributes:
        pictures: of the shard alone.
        labels: of each.
        group: rows of a row group.
        size: pixels that a longer shorter side is resized to; none: images stay as they are.
    """

    path: Path
    pictures: Pictures
    labels: list[tuple[Any, ...]]
    schema: Any
    group: int
    size: int | None


def schema(classes: tuple[str, ...], *, multi_label: bool, about: dict[str, Any], numbers: bool = False) -> Any:
    """Columns ``image`` (struct of bytes and path) and ``label`` (int64, or a list of them), with names of classes for
    ``datasets`` (key ``huggingface``) and ``about`` under a key of our own (``proxscore``). With ``numbers``, ``label`` is
    float32, or a list of them."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if numbers:
        kind = pa.list_(pa.float32()) if len(classes) > 1 else pa.float32()
        return pa.schema([("image", image), ("label", kind)], {METADATA_KEY: json.dumps(about).encode()})
    label = {"names": list(classes), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": {"feature": label, "_type": "Sequence"} if multi_label else label}
    metadata = {
        b"huggingface": json.dumps({"info": {"features": features}}).encode(),
        METADATA_KEY: json.dumps(about).encode(),
    }
    return pa.schema([("image", image), ("label", pa.list_(pa.int64()) if multi_label else pa.int64())], metadata)


def group_rows(lengths: Rows) -> int:
    """Rows of a row group, for images of these many bytes."""
    return int(np.clip(_GROUP_BYTES / max(1.0, float(np.mean(lengths))), 1, _GROUP_ROWS))


def write_shard(shard: Shard) -> int:
    """Write a shard; gives the number of its rows."""
    multi = pa.types.is_list(shard.schema.field("label").type)
    with pq.ParquetWriter(shard.path, shard.schema, use_dictionary=["label"]) as writer:
        images = (stored(picture, shard.size) for picture in shard.pictures.read())
        for first in range(0, len(shard.labels), shard.group):
            labels = shard.labels[first : first + shard.group]
            column = [list(own) for own in labels] if multi else [own[0] for own in labels]
            writer.write_table(pa.table({"image": list(islice(images, len(labels))), "label": column}, shard.schema))
    return len(shard.labels)


def stored(picture: Picture, size: int | None) -> dict[str, Any]:
    """An image as the table holds it: its own bytes, PNG of an array; or JPEG of a smaller copy, where it is too large."""
    content, path = picture.content, PurePosixPath(picture.path)
    if size is not None or isinstance(content, np.ndarray):
        image, _ = upright(picture)
        if size is not None and min(image.size) > size:
            return {"bytes": _encoded(_smaller(image, size), "JPEG"), "path": str(path.with_suffix(".jpg"))}
        if isinstance(content, np.ndarray):
            return {"bytes": _encoded(image, "PNG"), "path": str(path)}
    assert isinstance(content, (bytes, Path))
    return {"bytes": content if isinstance(content, bytes) else content.read_bytes(), "path": str(path)}


def _smaller(image: Image.Image, size: int) -> Image.Image:
    grey = image.mode in ("1", "L", "LA")
    scale = size / min(image.size)
    shape = tuple(max(size, round(side * scale)) for side in image.size)
    return image.convert("L" if grey else "RGB").resize((shape[0], shape[1]), Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": QUALITY, "subsampling": 0} if kind == "JPEG" else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()
