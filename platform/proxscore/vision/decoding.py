"""Encoded images to pixels: open, convert, resize the shorter side, crop the centre. No augmentation."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from proxscore.config import ConfigError
from proxscore.vision.images import Normalisation

_MODES = {1: "L", 3: "RGB"}
_DEEP = ("I", "F")  # 16- and 32-bit pixels: PIL clips them at 255 instead of scaling, which would turn them white


class Decoder:
    """Encoded bytes or files to normalised float32 images of one shape.

    The shorter side is resized to ``size`` (bilinear, antialiased), the centre ``size`` x ``size`` is kept, and pixels
    become (x / 255 - mean) / std. ``channels`` 1 is grey (ITU-R 601 luma), 3 is RGB; transparency is dropped.
    """

    def __init__(self, size: int, channels: int, normalise: Normalisation) -> None:
        self.mode, self.normalise = _MODES[channels], normalise
        self.transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])

    def pixels(self, source: Path | bytes, where: str) -> Tensor:
        """uint8 (C, size, size) of one image.

        Raises:
            ConfigError: not an image, cut short, or more than 8 bits per channel; ``where`` names it.
        """
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                _check_depth(image)
                return functional.pil_to_tensor(self.transform(image.convert(self.mode)))
        except Exception as error:  # decoders of foreign bytes raise OSError, SyntaxError, struct.error, EOFError, ...
            raise ConfigError(_unreadable(error, where)) from error

    def batch(self, sources: Iterable[tuple[Path | bytes, str]]) -> Tensor:
        """Normalised float32 (B, C, size, size) of pairs of an image and its name in errors."""
        return self.normalise(torch.stack([self.pixels(source, where) for source, where in sources]))


def verify_file(path: Path) -> None:
    """Open an image file and check what its format lets one check without decoding (headers, PNG checksums).

    Raises:
        ConfigError: not an image, or more than 8 bits per channel; names the file.
    """
    try:
        with Image.open(path) as image:
            _check_depth(image)
            image.verify()
    except Exception as error:  # as in Decoder.pixels
        raise ConfigError(_unreadable(error, str(path))) from error


def _check_depth(image: Image.Image) -> None:
    if image.mode.startswith(_DEEP):
        raise ValueError(f"pixels of mode {image.mode}; convert it to 8 bits per channel")


def _unreadable(error: Exception, where: str) -> str:
    # PIL repeats the name, or the address of the buffer, for a file that it cannot identify
    foreign = isinstance(error, Image.UnidentifiedImageError)
    reason = "not in a known image format" if foreign else " ".join(str(error).split()) or type(error).__name__
    return f"{where}: not a readable image: {reason}"
