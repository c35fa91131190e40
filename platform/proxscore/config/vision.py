"""Images: networks and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from proxscore.config.section import Section


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
    split_seed: int = 0
    mean: float | list[float] = 0.5  # pixel normalisation: (x - mean) / std, after scaling to [0, 1]
    std: float | list[float] = 0.5


class DigitsConfig(_DataConfig):
    """scikit-learn's 1,797 digits, 8x8 pixels: comes with the installation."""

    kind: Literal["digits"] = "digits"


class IdxConfig(_DataConfig):
    """IDX files (plain or gz) in one folder, named as MNIST and Fashion-MNIST name them (train-..., t10k-...)."""

    kind: Literal["idx"]
    path: Path
    classes: int = Field(10, gt=1)  # labels are 0..classes-1


class ImageFolderConfig(_DataConfig):
    """A folder per class; either directly under ``path`` or under ``path/train``, ``path/val(idation)``, ``path/test``."""

    kind: Literal["image_folder"]
    path: Path
    size: int = Field(224, gt=0)  # images are resized (shorter side) and centre-cropped to size x size
    channels: Literal[1, 3] = 3
    unreadable: Literal["fail", "skip"] = "fail"  # what an image that cannot be decoded does; skipped ones are counted


class ParquetConfig(_DataConfig):
    """Parquet files with an encoded image and an integer label per row, read through Ray Data.

    ``path`` is a file, or a folder of files; files whose names start with train, val or test are those splits.
    """

    kind: Literal["parquet"]
    path: Path
    image_column: str = "image"
    label_column: str = "label"
    classes: int = Field(gt=1)
    size: int = Field(224, gt=0)
    channels: Literal[1, 3] = 3
    unreadable: Literal["fail", "skip"] = "fail"  # as of image folders; null images count too


DataConfig = Annotated[DigitsConfig | IdxConfig | ImageFolderConfig | ParquetConfig, Field(discriminator="kind")]


class VisionConfig(Section):
    """Image classification with a timm model."""

    kind: Literal["vision"] = "vision"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DigitsConfig()
    likelihood: Literal["categorical", "bernoulli"] = "categorical"  # bernoulli: two classes from one logit
