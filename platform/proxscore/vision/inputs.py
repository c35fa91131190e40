"""New images as a trained network takes them: files, bytes, pictures and arrays, prepared as those of training were.

What an image is:

* a path: a file in any of Pillow's common formats, decoded, turned upright, resized and cropped as in training;
* bytes, or a dictionary with ``bytes`` (as Parquet tables of images hold them): an encoded file; the same;
* a ``PIL.Image``: the same, but for the decoding;
* an array or tensor of integers, 0 to ``peak`` (255, or what the data of training had), or of floating-point numbers, 0 to 1:
  (H, W), (H, W, C) or (C, H, W). One of another size than the network's is resized as a picture.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from proxscore.config import ConfigError
from proxscore.vision.decoding import Decoder, UnreadableError
from proxscore.vision.images import Normalisation
from proxscore.vision.sources.image_folder import EXTENSIONS

#: What a text stands for: the path of a file, or (for callers elsewhere) an encoded file in base64.
Texts = Literal["paths", "base64"]
MAX_SIDE = 16_384  # pixels of an array


@dataclass(frozen=True)
class ImageInputs:
    """How images become a network's inputs (C, H, W).

    Attributes:
        shape: C, H, W.
        normalise: mean and standard deviation of each channel.
        interpolation: of resizing, a name of torchvision's ``InterpolationMode``.
        crop: fraction of the resized shorter side that is kept.
        peak: value of a white pixel in an array of integers.
        texts: what a text stands for.
    """

    shape: tuple[int, int, int]
    normalise: Normalisation
    interpolation: str = "bilinear"
    crop: float = 1.0
    peak: int = 255
    texts: Texts = "paths"

    @classmethod
    def of(cls, described: Mapping[str, Any], settings: Any, where: str, texts: Texts = "paths") -> ImageInputs:
        """What a posterior's description says of its data.

        Args:
            described: its section ``data``.
            settings: the section ``task.data`` of its configuration, for descriptions that do not tell the preprocessing.
            where: the description lies, for messages.

        Raises:
            ConfigError: it tells no shape, or a preprocessing that makes no sense.
        """
        found = described.get("preprocessing")
        if not isinstance(found, Mapping):
            shape = described.get("shape")
            if not isinstance(shape, list) or len(shape) != 3:
                raise ConfigError(f"{where}: data has no shape (channels, height, width) of images")
            found = {
                "channels": shape[0],
                "height": shape[1],
                "width": shape[2],
                "mean": settings.mean,
                "std": settings.std,
            }
            found |= {
                "interpolation": getattr(settings, "interpolation", None),
                "crop": getattr(settings, "crop", None),
            }
            found["peak"] = 16 if described.get("kind") == "digits" else 255
        try:
            channels, height, width = (int(found[key]) for key in ("channels", "height", "width"))
            crop, peak = float(found.get("crop") or 1), int(found.get("peak") or 255)
            normalise = Normalisation.of(found.get("mean"), found.get("std"), channels)
            if channels not in (1, 3) or not (0 < crop <= 1) or not (0 < peak <= 255):
                raise ValueError(f"channels {channels}, crop {crop}, peak {peak}")
            if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
                raise ValueError(f"{height}x{width} pixels")
            interpolation = str(found.get("interpolation") or "bilinear")
            made = cls((channels, height, width), normalise, interpolation, crop, peak, texts)
            made._decoder()
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: data.preprocessing: {' '.join(str(error).split())}") from error
        return made

    def batch(self, images: Sequence[Any], first: int = 0) -> tuple[Tensor, list[int], dict[int, str]]:
        """Prepare images.

        Args:
            first: number of the first one, for messages.

        Returns:
            Float32 (K, C, H, W) of those that can be read, their places (K,) among ``images``, and why each of the others
            cannot, by its place.
        """
        kept, found, failed = [], [], {}
        decoder = self._decoder()
        for place, image in enumerate(images):
            try:
                found.append(self._one(image, f"image {first + place}", decoder))
                kept.append(place)
            except (UnreadableError, ConfigError) as error:
                failed[place] = str(error)
        return torch.stack(found) if found else torch.empty(0, *self.shape), kept, failed

    def _decoder(self) -> Decoder:
        channels, height, width = self.shape
        return Decoder(min(height, width), channels, self.normalise, interpolation=self.interpolation, crop=self.crop)

    def _one(self, image: Any, where: str, decoder: Decoder) -> Tensor:
        if isinstance(image, Mapping):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str) and self.texts == "base64":
            try:
                image = base64.b64decode(image, validate=True)
            except (binascii.Error, ValueError) as error:
                raise UnreadableError(where, "a text that is no base64 of an encoded image") from error
        if isinstance(image, (bytes, bytearray, memoryview)):
            return self._of_pixels(decoder.pixels(bytes(image), where), where)
        if isinstance(image, (str, Path)) and self.texts == "paths":
            path = Path(image).expanduser()
            if not path.is_file():
                raise UnreadableError(str(path), "no such file")
            return self._of_pixels(decoder.pixels(path, str(path)), str(path))
        if isinstance(image, Image.Image):
            return self._of_pixels(decoder.of_picture(image, where), where)
        if isinstance(image, (np.ndarray, Tensor, list, tuple)):
            return self._of_array(image, where, decoder)
        raise UnreadableError(
            where, f"a {type(image).__name__} is no image: give a file, its bytes, a picture or an array"
        )

    def _of_pixels(self, pixels: Tensor, where: str) -> Tensor:
        if tuple(pixels.shape) != self.shape:  # the network's images are not square
            shown = "x".join(map(str, self.shape))
            raise UnreadableError(
                where, f"the network takes {shown}, to which no picture is cropped: give arrays of that size"
            )
        return self.normalise(pixels[None])[0]

    def _of_array(self, image: Any, where: str, decoder: Decoder) -> Tensor:
        try:
            values = torch.as_tensor(np.array(image) if not isinstance(image, Tensor) else image).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UnreadableError(where, f"no array of numbers: {' '.join(str(error).split())[:100]}") from error
        values = self._channels_first(values, where, tensor=isinstance(image, Tensor))
        if values.dtype == torch.bool or values.is_complex() or not values.numel():
            raise UnreadableError(where, f"an array of {values.dtype} of shape {tuple(values.shape)} is no image")
        top = 1.0 if values.is_floating_point() else float(self.peak)
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= top):
            kind = (
                "floating-point numbers go from 0 to 1"
                if values.is_floating_point()
                else f"integers go from 0 to {self.peak}"
            )
            raise UnreadableError(where, f"pixels from {low:g} to {high:g}: {kind}")
        if tuple(values.shape) == self.shape:
            return self.normalise(values[None].float(), top)[0]
        if max(values.shape) > MAX_SIDE:
            raise UnreadableError(
                where, f"an array of shape {tuple(values.shape)}; a side has at most {MAX_SIDE} pixels"
            )
        pixels = (values.double() * (255 / top)).round().to(torch.uint8)
        return self._of_pixels(decoder.of_picture(functional.to_pil_image(pixels), where), where)

    def _channels_first(self, values: Tensor, where: str, *, tensor: bool) -> Tensor:
        """(C, H, W); where both ends could count the channels, an array has them last, as pictures do, and a tensor first."""
        if values.ndim == 2:
            return values[None]
        if values.ndim == 3:
            first, last = values.shape[0] in (1, 3), values.shape[2] in (1, 3)
            if first and last:
                first = tensor or tuple(values.shape) == self.shape
            if first:
                return values
            if last:
                return values.permute(2, 0, 1)
        raise UnreadableError(
            where,
            f"an array of shape {tuple(values.shape)}: give (H, W), (H, W, C) or (C, H, W), of one or three channels",
        )


def image_rows(images: Any, channels: int, column: str | None = None) -> list[Any]:
    """The images of whatever holds them: a folder (in the order of paths), a file, a picture, a table, an array, a list.

    Args:
        channels: of the network's images: an array of three axes is one image of three, or many of one.
        column: of a table; by default ``image``, ``path``, or the only one.

    Raises:
        ConfigError: a folder without images, a table without such a column, an array of another number of axes.
    """
    if isinstance(images, (str, Path)):
        path = Path(images).expanduser()
        if path.is_dir():
            return list(files_in(path))
        return [path]
    if isinstance(images, (bytes, bytearray, Image.Image, Mapping)):
        return [images]
    if hasattr(images, "to_pandas"):  # a pyarrow table
        images = images.to_pandas()
    if hasattr(images, "columns"):  # a data frame
        return list(images[_column(list(map(str, images.columns)), column)])
    if isinstance(images, (np.ndarray, Tensor)):
        if images.ndim == 2:
            return [images]
        if images.ndim == 3 and channels == 3:
            return [images]
        if images.ndim not in (3, 4):
            raise ConfigError(
                f"an array of shape {tuple(images.shape)} holds no images: give (N, H, W), (N, H, W, C) or (N, C, H, W)"
            )
        return list(images)
    if isinstance(images, Iterable):
        return list(images)
    raise ConfigError(f"a {type(images).__name__} holds no images: give a folder, files, bytes, arrays or a table")


def files_in(folder: Path) -> Iterator[Path]:
    """The image files of a folder and the folders in it, in the order of their paths.

    Raises:
        ConfigError: there are none.
    """
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )
    if not found:
        raise ConfigError(f"{folder}: no images there ({', '.join(EXTENSIONS)})")
    yield from found


def _column(names: list[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in names:
            raise ConfigError(f"the table has no column {wanted!r}; it has {', '.join(names)}")
        return wanted
    for name in ("image", "path", *(names if len(names) == 1 else ())):
        if name in names:
            return name
    raise ConfigError(f"the table has no column image (or path); it has {', '.join(names)}")
