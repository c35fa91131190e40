"""The settings that sources of images share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from pydantic import Field

from proxscore.config import MAX_SEED, DataSection
from proxscore.vision.images import Source


class ImageSource(DataSection):
    """What every source of images has in common. Fractions are of the rows that have no split of their own."""

    validation_fraction: float = Field(0.1, gt=0, lt=1)  # of the rows, where the source has no validation split
    test_fraction: float = Field(0.2, gt=0, lt=1)  # of the rows, where the source has no test split
    limit: int | None = Field(None, gt=0)  # use only that many training images (drawn by the split seed)
    split_seed: int = Field(0, ge=0, le=MAX_SEED)  # draws the splits, and the rows of limit
    # Pixel normalisation: (x - mean) / std, after scaling to [0, 1]. Null: as the network's pretrained weights were trained
    # (timm's pretrained_cfg), if it starts from such weights; else 0.5.
    mean: float | list[float] | None = None
    std: float | list[float] | None = None  # of each channel, or of all; null: as of mean

    @abstractmethod
    def load(self) -> Source:
        """The rows, in the splits that they come in.

        Raises:
            ConfigError: a file, a row or a package at fault, in one line.
        """


class EncodedImageSource(ImageSource):
    """What sources of encoded images have in common: how a picture becomes ``channels`` x ``size`` x ``size`` pixels.

    It is turned as its EXIF orientation says, its shorter side is resized to ``size / crop``, the centre is kept.
    """

    size: int = Field(224, gt=0, le=16_384)  # pixels of a side, as the network gets them
    channels: Literal[1, 3] = 3  # 1: gray; 3: colours
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None  # null: as of mean and std; else bilinear
    crop: float | None = Field(None, gt=0, le=1)  # null: as of mean and std; else 1
    unreadable: Literal["fail", "skip"] = "fail"  # what an image that cannot be decoded does; skipped ones are counted
