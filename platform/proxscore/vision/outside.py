"""Images of other kinds than those of training, brought to the network's own preprocessing: out-of-distribution data by name
or path.

``digits`` (scikit-learn's), ``noise`` (uniform pixels) and ``photographs`` (pieces of scikit-learn's two) come with the
installation; else it is a folder of images, flat or with class folders, a folder of IDX files, or Parquet files. ``near:`` or
``far:`` before it says how unlike the training data they are held to be.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from proxscore.config import ConfigError
from proxscore.config.files import check_regular
from proxscore.vision.decoding import Decoder
from proxscore.vision.image_task import ImageTask
from proxscore.vision.images import ImageDataset, MemoryReader, Reader, View
from proxscore.vision.shifts import photograph
from proxscore.vision.sources.digits import DigitsConfig
from proxscore.vision.sources.idx import IdxConfig
from proxscore.vision.sources.image_folder import EXTENSIONS, FolderReader
from proxscore.vision.sources.image_folder import _folders as class_folders
from proxscore.vision.sources.image_folder import _images as image_files
from proxscore.vision.sources.parquet import HeldGroups, RowGroups
from proxscore.vision.splits import Rows

ROWS = 1000  # of images that are made
BUILT_IN = ("digits", "noise", "photographs")
Label = Literal["near", "far", "unlabelled"]


@dataclass(frozen=True)
class Outside:
    """A set of images of other kinds.

    Attributes:
        name: as it was asked for, without its label.
        label: how unlike the training data they are held to be; those that are built in are far.
        images: prepared as those of the task, with labels that mean nothing.
        classes: names of the folders that they lie in, if they do.
    """

    name: str
    label: Label
    images: ImageDataset
    classes: tuple[str, ...] = ()


class MadeReader(Reader):
    """Images that are made as they are read, each from its row alone."""

    def __init__(self, kind: str, task: ImageTask, rows: int) -> None:
        self.kind, self.shape, self.normalisation = kind, task.data.shape, task.normalisation
        self.labels = np.zeros(rows, dtype=np.int64)

    def read(self, rows: Rows, view: View | None = None) -> tuple[Tensor, Rows]:
        """See :meth:`Reader.read`."""
        images = [self._image(torch.Generator().manual_seed(int(row))) for row in rows]
        if view is not None:
            images = [view(functional.to_pil_image(image), place) for place, image in enumerate(images)]
            return torch.stack(images), np.arange(len(rows))
        return self.normalisation.again(torch.stack(images)), np.arange(len(rows))

    def _image(self, generator: torch.Generator) -> Tensor:
        if self.kind == "noise":
            return torch.rand(self.shape, generator=generator)
        return photograph(self.shape, generator) / 255


class PixelReader(Reader):
    """Images in memory, uint8 (N, 1, height, width), through the decoder's resizing, crop, channels and normalisation."""

    def __init__(self, pixels: Tensor, decoder: Decoder) -> None:
        self.pixels, self.decoder, self.peak = pixels, decoder, 255
        self.labels = np.zeros(len(pixels), dtype=np.int64)

    def read(self, rows: Rows, view: View | None = None) -> tuple[Tensor, Rows]:
        """See :meth:`Reader.read`."""
        pictures = [Image.fromarray(self.pixels[int(row), 0].numpy()).convert(self.decoder.mode) for row in rows]
        if view is not None:
            return torch.stack([view(picture, place) for place, picture in enumerate(pictures)]), np.arange(len(rows))
        pixels = torch.stack([functional.pil_to_tensor(self.decoder.transform(picture)) for picture in pictures])
        return self.decoder.normalise(pixels), np.arange(len(rows))


class EncodedRows(Reader):
    """Encoded images in a column of Parquet files."""

    decodes = True

    def __init__(self, groups: RowGroups, rows: int, decoder: Decoder) -> None:
        self.groups, self.decoder, self.held = groups, decoder, HeldGroups(groups)
        self.labels = np.zeros(rows, dtype=np.int64)

    def read(self, rows: Rows, view: View | None = None) -> tuple[Tensor, Rows]:
        """See :meth:`Reader.read`."""
        return self.decoder.batch(self.held.images(rows), view)


def load_outside(asked: str, task: ImageTask) -> Outside:
    """Open a set of images of other kinds.

    Args:
        asked: ``[near:|far:]NAME|PATH``.
        task: whose preprocessing they get.

    Raises:
        ConfigError: nothing is there that is known, or an image is at fault; one line names it.
    """
    label, _, name = asked.partition(":") if asked.startswith(("near:", "far:")) else ("", "", asked)
    said = cast(Label, label or ("far" if name in BUILT_IN else "unlabelled"))
    channels, height, width = task.data.shape
    if name in ("noise", "photographs"):
        return Outside(name, said, _all_rows(MadeReader(name, task, ROWS)))
    if height != width or channels not in (1, 3):
        raise ConfigError(
            f"--ood {asked}: images are brought to squares, grey or RGB; those of the task have shape {task.data.shape}: take "
            "noise or photographs"
        )
    decoder = _decoder(task)
    if name == "digits":
        reader = cast(MemoryReader, DigitsConfig().load().pools["train"])
        return Outside(name, said, _all_rows(PixelReader(scaled(reader), decoder)))
    path = Path(name).expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"--ood {asked}: no such file or folder, and none of {', '.join(BUILT_IN)}")
    if path.is_file() or any(path.glob("*.parquet")):
        return Outside(name, said, _all_rows(_parquet(asked, path, task, decoder)))
    if any(path.glob("*-images-idx3-ubyte*")):
        pools = IdxConfig(path=path, classes=256).load().pools
        reader = cast(MemoryReader, pools.get("test", pools["train"]))
        return Outside(name, said, _all_rows(PixelReader(reader.pixels, decoder)))
    files = image_files(path)
    if not files:
        raise ConfigError(f"--ood {asked}: no images in it ({', '.join(EXTENSIONS)}), no IDX and no Parquet files")
    folder = FolderReader(files, np.zeros(len(files), dtype=np.int64), decoder)
    folder.verify()
    return Outside(name, said, _all_rows(folder), tuple(class_folders(path)))


def scaled(reader: MemoryReader) -> Tensor:
    """Pixels of images in memory as bytes of which 255 is white."""
    if reader.peak == 255:
        return reader.pixels
    return (reader.pixels.float() * (255 / reader.peak)).round().to(torch.uint8)


def _all_rows(reader: Reader) -> ImageDataset:
    return ImageDataset(reader, np.arange(len(reader.labels), dtype=np.int64))


def _decoder(task: ImageTask) -> Decoder:
    data = task.config.data
    channels, size, _ = task.data.shape
    return Decoder(
        size,
        channels,
        task.normalisation,
        skip=getattr(data, "unreadable", "fail") == "skip",
        interpolation=getattr(data, "interpolation", None) or "bilinear",
        crop=getattr(data, "crop", None) or 1.0,
    )


def _parquet(asked: str, path: Path, task: ImageTask, decoder: Decoder) -> EncodedRows:
    """Rows of a Parquet file or of a folder of them: of the task's own image column, or of ``image``."""
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    column: str = getattr(task.config.data, "image_column", "image")
    sizes: list[list[int]] = []
    for file in files:
        try:
            check_regular(file)
            content = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"--ood {asked}: {file}: not a readable Parquet file: {_line(error)}") from error
        if column not in content.schema_arrow.names:
            raise ConfigError(
                f"--ood {asked}: {file} has no column {column!r} with encoded images; it has "
                f"{', '.join(content.schema_arrow.names)}"
            )
        kind = content.schema_arrow.field(column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ConfigError(f"--ood {asked}: {file}: column {column!r} is {kind}; expected encoded images, binary")
        sizes.append([content.metadata.row_group(group).num_rows for group in range(content.num_row_groups)])
    every = list(itertools.chain.from_iterable(sizes))
    if not sum(every):
        raise ConfigError(f"--ood {asked}: its Parquet files have no rows")
    firsts = np.cumsum([0, *every])[:-1].astype(np.int64)
    before = np.cumsum([0, *map(len, sizes)])[:-1].astype(np.int64)
    return EncodedRows(RowGroups(files, column, firsts, before), sum(every), decoder)


def _line(error: Any) -> str:
    return " ".join(str(error).split())
