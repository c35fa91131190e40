"""What every image source hands over: readers of normalised pixels by row number, and the datasets made from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from proxscore.config import ConfigError
from proxscore.vision.splits import Rows

Batch = tuple[Tensor, Tensor]
Targets = Literal["classes", "labels", "values"]
#: A picture and its place among the rows that are read -> float32 (C, H, W), normalised.
View = Callable[[Image.Image, int], Tensor]
SMALLEST_STD = 1e-6  # of pixels in [0, 1]


@dataclass(frozen=True)
class Normalisation:
    """(x / peak - mean) / std per channel, where ``peak`` is the value of a white pixel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: float | list[float] | None, std: float | list[float] | None, channels: int) -> Normalisation:
        """From the settings: one number for all channels, or one per channel; none is 0.5.

        Raises:
            ConfigError: another number of values than channels, or a std that is not positive.
        """
        values: dict[str, tuple[float, ...]] = {}
        for name, value in (("mean", mean), ("std", std)):
            value = 0.5 if value is None else value
            values[name] = tuple(value) if isinstance(value, list) else (value,) * channels
            if (count := len(values[name])) != channels:
                raise ConfigError(f"task.data.{name} has {count} values; give one, or one per channel ({channels})")
        if min(values["std"]) < SMALLEST_STD:
            raise ConfigError(
                f"task.data.std is {min(values['std'])}; it divides the pixels and must be {SMALLEST_STD:g} or more"
            )
        return cls(values["mean"], values["std"])

    def __call__(self, pixels: Tensor, peak: float = 255) -> Tensor:
        """uint8 (B, C, H, W), or other numbers from 0 to ``peak``, to float32 (B, C, H, W) of its own."""
        mean, std = self._tensors()
        return pixels.to(torch.float32, copy=True).div_(peak).sub_(mean).div_(std)

    def undone(self, images: Tensor) -> Tensor:
        """Normalised float32 (..., C, H, W) back to pixels in [0, 1]."""
        mean, std = self._tensors()
        return (images * std).add_(mean).clamp_(0, 1)

    def again(self, pixels: Tensor) -> Tensor:
        """Float32 pixels in [0, 1], (..., C, H, W), to normalised ones; the argument stays as it is."""
        mean, std = self._tensors()
        return (pixels - mean).div_(std)

    def _tensors(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std


class Reader(ABC):
    """The rows of one place (a pair of files, a folder): their labels, and their images on demand."""

    labels: Any  # (N,) int64, every one in 0..classes-1; float32 (N, C) or (N, D) of other targets; see Source
    decodes: bool = False  # whether reading takes so long that other processes had better do it

    @abstractmethod
    def read(self, rows: Rows, view: View | None = None) -> tuple[Tensor, Rows]:
        """Normalised float32 images (K, C, H, W) of these rows (B,), in this order, and their places (K,) among them.

        All of them, K = B, unless unreadable ones are to be left out.

        Args:
            view: makes the image of a picture, in place of resizing, cropping and normalising it.
        """

    def verify(self) -> None:
        """Raise ConfigError for the first image that cannot be read, or say which ones are left out.

        Nothing to do where pixels are in memory.
        """
        return None


class MemoryReader(Reader):
    """Images held in memory as bytes (a quarter of float32), normalised as they are read."""

    def __init__(self, pixels: Tensor, labels: Rows, normalise: Normalisation, peak: int = 255) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ConfigError(
                f"images in memory are {pixels.dtype} of shape {tuple(pixels.shape)}; give torch.uint8 (rows, channels, height, "
                f"width), from 0 to {peak}"
            )
        self.pixels, self.labels, self.normalise, self.peak = pixels, labels, normalise, peak

    def read(self, rows: Rows, view: View | None = None) -> tuple[Tensor, Rows]:
        """See :meth:`Reader.read`."""
        pixels, places = self.pixels[torch.from_numpy(rows)], np.arange(len(rows))
        if view is None:
            return self.normalise(pixels, self.peak), places
        if self.peak != 255:
            pixels = (pixels.float() * (255 / self.peak)).round().to(torch.uint8)
        from torchvision.transforms.functional import to_pil_image  # takes a second

        return torch.stack([view(to_pil_image(image), place) for place, image in enumerate(pixels)]), places


@dataclass(frozen=True)
class Source:
    """A data set as it lies there: ``pools`` has ``train``, and ``validation`` and ``test`` where it brings them.

    ``targets`` says what a reader's ``labels`` are: ``classes``, integers (N,); ``labels``, zeros and ones (N, C) for each of
    ``classes``; ``values``, numbers (N, D), of what ``classes`` names.
    """

    pools: dict[str, Reader]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # channels, height, width
    targets: Targets = "classes"


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Some rows of a reader. Items are (float32 image (C, H, W), int label); ``__getitems__`` fetches a whole batch.

    Args:
        reader: where the images are.
        rows: (N,) row numbers in the reader; item i is row ``rows[i]``.
    """

    def __init__(self, reader: Reader, rows: Rows) -> None:
        self.reader, self.rows = reader, rows

    @property
    def labels(self) -> Tensor:
        """(N,) int64, or what else the targets are, without reading an image."""
        return torch.from_numpy(self.reader.labels[self.rows])

    @property
    def decodes(self) -> bool:
        """Whether items are decoded as they are read."""
        return self.reader.decodes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        if not len(labels):
            raise ConfigError(f"item {index} of the data set cannot be read, and alone it cannot be left out")
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """(images (K, C, H, W) float32, labels (K,) int64); a DataLoader calls this once per batch.

        K is the number of indices, less the rows that are left out as unreadable (``task.data.unreadable: skip``).
        """
        return self.read(indices)

    def read(self, indices: Sequence[int], view: View | None = None) -> Batch:
        """The items of these indices, as :meth:`__getitems__` gives them, or views of their pictures; see :meth:`Reader.read`."""
        rows = self.rows[np.asarray(indices, dtype=np.int64)]
        images, kept = self.reader.read(rows, view)
        return images, torch.from_numpy(self.reader.labels[rows[kept]])


@dataclass(frozen=True)
class ImageData:
    """A data set, split. ``splits`` says how: seed, counts, fractions, and a SHA-256 of each part's row numbers."""

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # channels, height, width
    splits: dict[str, Any]
    targets: Targets = "classes"


def collate(batch: Batch) -> Batch:
    """For ``DataLoader(collate_fn=collate)``: ``ImageDataset.__getitems__`` has made the batch already."""
    return batch


def check_labels(labels: Rows, classes: int, where: Callable[[int], str]) -> None:
    """Raise ConfigError for the first label outside 0..classes-1; ``where(row)`` names the file and row."""
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        row = int(bad[0])
        raise ConfigError(f"{where(row)}: label {labels[row]} is outside 0..{classes - 1}")
