"""Encoded images to pixels: open, turn upright, convert, resize the shorter side, crop the centre. No augmentation."""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from proxscore.config import ConfigError
from proxscore.config.files import check_regular
from proxscore.vision.images import Normalisation, View
from proxscore.vision.splits import Rows

if TYPE_CHECKING:
    from proxscore.vision.sources.base import EncodedImageSource

#: Formats that are decoded. Pillow knows more, and hands some of them (PostScript) to other programs.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF")
#: How many times the pixels of a side that are wanted a JPEG has at least when it is decoded: antialiasing takes the rest.
SPARE = 2
MAX_PIXELS = 2**26  # of an encoded image: 268 MB as it is decoded
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's bound is wider than this one
_MODES = {1: "L", 3: "RGB"}
_DEEP = ("I", "F")  # 16- and 32-bit pixels: PIL clips them at 255 instead of scaling, which would turn them white


class UnreadableError(ConfigError):
    """An image whose content is at fault: ``task.data.unreadable`` says whether the run ends or goes on without it."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Decoder:
    """Encoded bytes or files to normalised float32 images of one shape.

    An image is turned as its EXIF orientation says, its shorter side is resized to floor(size / crop) (antialiased), the
    centre ``size`` x ``size`` is kept, and pixels become (x / 255 - mean) / std. ``channels`` 1 is grey (ITU-R 601 luma), 3 is
    RGB; transparency is dropped.

    Args:
        skip: leave images out that cannot be read, and say so, instead of raising.
        interpolation: a name of torchvision's ``InterpolationMode``.
        crop: fraction of the resized shorter side that is kept.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        normalise: Normalisation,
        *,
        skip: bool = False,
        interpolation: str = "bilinear",
        crop: float = 1.0,
    ) -> None:
        self.mode, self.normalise, self.skip = _MODES[channels], normalise, skip
        self.shape = (channels, size, size)
        self._shorter = math.floor(size / crop)
        resize = v2.Resize(self._shorter, InterpolationMode(interpolation))
        self.transform = v2.Compose([resize, v2.CenterCrop(size)])

    @classmethod
    def of(cls, config: EncodedImageSource) -> Decoder:
        """The decoder that a section describes; what it leaves open is bilinear, without a margin, mean and std 0.5."""
        return cls(
            config.size,
            config.channels,
            Normalisation.of(config.mean, config.std, config.channels),
            skip=config.unreadable == "skip",
            interpolation=config.interpolation or "bilinear",
            crop=config.crop or 1.0,
        )

    def pixels(self, source: Path | bytes | None, where: str) -> Tensor:
        """uint8 (C, size, size) of one image.

        Raises:
            UnreadableError, ConfigError: as :meth:`picture`.
        """
        return functional.pil_to_tensor(self._fitted(self.picture(source, where, self._shorter), where))

    def picture(self, source: Path | bytes | None, where: str, shorter: int | None = None) -> Image.Image:
        """One image as it is, upright, in the colours that are asked for.

        Args:
            shorter: pixels of the shorter side that it is to be resized to: a JPEG is then decoded at 1/2, 1/4 or 1/8 of its
                size where at least ``SPARE`` times as many are left, which its format does in a fraction of the time.

        Raises:
            UnreadableError: null, not an image, too large, cut short, or more than 8 bits per channel; ``where`` names it.
            ConfigError: the file cannot be opened or read.
        """
        if source is None:
            raise UnreadableError(where, "the image is null")
        try:
            with _opened(source) as image:
                _check(image)
                if shorter is not None and image.format == "JPEG":
                    image.draft(None, (SPARE * shorter, SPARE * shorter))
                return _upright(image).convert(self.mode)
        except Exception as error:  # decoders of foreign bytes raise OSError, SyntaxError, struct.error, EOFError, ...
            raise _unreadable(error, where) from error

    def of_picture(self, picture: Image.Image, where: str) -> Tensor:
        """uint8 (C, size, size) of an image that is open.

        Raises:
            UnreadableError: too large, cut short, or more than 8 bits per channel; ``where`` names it.
        """
        try:
            _check(picture)
            picture = _upright(picture).convert(self.mode)
        except Exception as error:  # as in picture
            raise _unreadable(error, where) from error
        return functional.pil_to_tensor(self._fitted(picture, where))

    def _fitted(self, picture: Image.Image, where: str) -> Image.Image:
        """Resized and cropped."""
        try:
            fitted: Image.Image = self.transform(picture)
        except Exception as error:  # a picture of no height, once its other side is that small
            raise _unreadable(error, where) from error
        return fitted

    def batch(
        self, sources: Iterable[tuple[Path | bytes | None, str]], view: View | None = None
    ) -> tuple[Tensor, Rows]:
        """Pairs of an image and its name in errors to pixels.

        Args:
            view: makes the image of a picture, in place of resizing, cropping and normalising it.

        Returns:
            Normalised float32 (K, C, size, size) of those that can be read, and their places (K,) among the pairs.

        Raises:
            UnreadableError, ConfigError: as :meth:`pixels`; with ``skip``, only the second.
        """
        images, kept = [], []
        for place, (source, where) in enumerate(sources):
            try:
                images.append(self.pixels(source, where) if view is None else view(self.picture(source, where), place))
                kept.append(place)
            except UnreadableError as error:
                if not self.skip:
                    raise
                leave_out(error)
        if view is None:
            pixels = torch.stack(images) if images else torch.empty(0, *self.shape, dtype=torch.uint8)
            return self.normalise(pixels), np.array(kept, dtype=np.int64)
        return torch.stack(images) if images else torch.empty(0, *self.shape), np.array(kept, dtype=np.int64)


def decoded(source: Path | bytes, where: str) -> tuple[Image.Image, str]:
    """An image as it is, upright, and the name of its format.

    Raises:
        UnreadableError, ConfigError: as :meth:`Decoder.pixels`.
    """
    try:
        with _opened(source) as image:
            _check(image)
            image.load()
            return _upright(image), str(image.format)
    except Exception as error:  # as in Decoder.pixels
        raise _unreadable(error, where) from error


def verify_file(path: Path) -> None:
    """Open an image file and check what its format lets one check without decoding (headers, PNG checksums).

    Raises:
        UnreadableError: not an image, too large, or more than 8 bits per channel; names the file.
        ConfigError: the file cannot be opened or read.
    """
    try:
        with _opened(path) as image:
            _check(image)
            image.verify()
    except Exception as error:  # as in Decoder.pixels
        raise _unreadable(error, str(path)) from error


_left_out: set[str] = set()
_untold: list[UnreadableError] = []


def told() -> list[UnreadableError]:
    """What this loader process has left out since it was last asked: the process that it loads for says so."""
    found = _untold.copy()
    _untold.clear()
    return found


def leave_out(error: UnreadableError) -> None:
    """Say once in this process that a row is left out; in a process of a ``DataLoader``, keep it for :func:`told`."""
    if get_worker_info() is not None:
        _untold.append(error)
    elif error.where not in _left_out:
        _left_out.add(error.where)
        logging.getLogger(__name__).warning("%s; left out (task.data.unreadable: skip)", error)


def _opened(source: Path | bytes) -> Image.Image:
    """An image of one of ``FORMATS``, not yet decoded. A pipe would be waited for: only regular files are opened."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # some need a library that this Pillow may lack
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=formats)
    check_regular(source)
    return Image.open(source, formats=formats)


def _check(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are decoded: make it smaller")
    if image.mode.startswith(_DEEP):
        raise ValueError(f"pixels of mode {image.mode}; convert it to 8 bits per channel")


def _upright(image: Image.Image) -> Image.Image:
    """The image, turned and mirrored as its EXIF orientation says; one whose EXIF data cannot be parsed stays as it is."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, EOFError, struct.error):
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _unreadable(error: Exception, where: str) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    # PIL repeats the name, or the address of the buffer, for a file that it cannot identify
    foreign = isinstance(error, Image.UnidentifiedImageError)
    reason = "not in a known image format" if foreign else " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return ConfigError(
            f"{where}: cannot be read: {reason}"
        )  # a disk or network that is away is no fault of the row
    return UnreadableError(where, f"not a readable image: {reason}")
