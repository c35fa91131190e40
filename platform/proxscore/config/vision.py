"""Images: networks and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from proxscore.config.section import Section
from proxscore.config.training import MAX_SEED


class ModelConfig(Section):
    """A network by its timm name. ``kwargs`` go to ``timm.create_model`` as they are."""

    name: str = "vit_tiny_patch16_224"
    kwargs: dict[str, Any] = Field({})
    weights: Path | None = None  # a state dict (.safetensors or .pt) to start from; also the mean of the prior
    channels_last: bool = (
        False  # memory format of the images: faster for some convolutional networks, slower for others
    )


class _DataConfig(Section):
    """What every image data set has in common. Fractions are of the rows that have no split of their own."""

    validation_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    limit: int | None = Field(None, gt=0)  # use only that many training images (drawn by the split seed)
    split_seed: int = Field(0, ge=0, le=MAX_SEED)
    # Pixel normalisation: (x - mean) / std, after scaling to [0, 1]. Null: as the network's pretrained weights were trained
    # (timm's pretrained_cfg), if it starts from such weights; else 0.5.
    mean: float | list[float] | None = None
    std: float | list[float] | None = None


class _EncodedConfig(_DataConfig):
    """What data sets of encoded images have in common: how a picture becomes ``channels`` x ``size`` x ``size`` pixels.

    It is turned as its EXIF orientation says, its shorter side is resized to ``size / crop``, the centre is kept.
    """

    size: int = Field(224, gt=0, le=16_384)
    channels: Literal[1, 3] = 3
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None  # null: as of mean and std; else bilinear
    crop: float | None = Field(None, gt=0, le=1)  # null: as of mean and std; else 1
    unreadable: Literal["fail", "skip"] = "fail"  # what an image that cannot be decoded does; skipped ones are counted


class DigitsConfig(_DataConfig):
    """scikit-learn's 1,797 digits, 8x8 pixels: comes with the installation."""

    kind: Literal["digits"] = "digits"


class IdxConfig(_DataConfig):
    """IDX files (plain or gz) in one folder, named as MNIST and Fashion-MNIST name them (train-..., t10k-...)."""

    kind: Literal["idx"]
    path: Path
    classes: int = Field(10, gt=1, le=256)  # a label is a byte; labels are 0..classes-1


class ImageFolderConfig(_EncodedConfig):
    """A folder per class; either directly under ``path`` or under ``path/train``, ``path/val(idation)``, ``path/test``."""

    kind: Literal["image_folder"]
    path: Path


class ParquetConfig(_EncodedConfig):
    """Parquet files with an encoded image and an integer label per row, read through Ray Data.

    ``path`` is a file, or a folder of files; files whose names start with train, val or test are those splits.
    """

    kind: Literal["parquet"]
    path: Path
    image_column: str = "image"
    label_column: str = "label"
    classes: int = Field(gt=1, le=1_000_000)


DataConfig = Annotated[DigitsConfig | IdxConfig | ImageFolderConfig | ParquetConfig, Field(discriminator="kind")]


class VisionConfig(Section):
    """Image classification with a timm model."""

    kind: Literal["vision"] = "vision"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DigitsConfig()
    likelihood: Literal["categorical", "bernoulli"] = "categorical"  # bernoulli: two classes from one logit
