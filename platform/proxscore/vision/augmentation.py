"""Augmented views of training images, by timm's ``create_transform``, each a function of seed, epoch and row.

    log-likelihood of a row = its average over views of the image

Every epoch shows another view of a row; all draws of a step see the same one, and a run that goes on after a stop, or on other
workers, sees those that it would have seen. The number of data points stays that of the rows: views of one image are no
further observations. The posterior is that of the log-likelihood averaged over views, which is no likelihood of an observed
data set (Nabarro et al., Data augmentation in Bayesian neural networks and the cold posterior effect, arXiv 2106.05586).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from proxscore.config import ConfigError, Section
from proxscore.inference import noise
from proxscore.vision.images import Batch, ImageDataset, Normalisation, View
from proxscore.vision.splits import Rows

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {"scale": (0.7, 1.0), "ratio": (0.9, 1.1), "hflip": 0.5},
    "standard": {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "color_jitter": 0.4},
    "strong": {
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "erasing": 0.25,
    },
}


class AugmentationConfig(Section):
    """Augmented views of the training images. A key that is given goes before the preset's.

    Presets: ``light`` (crops of 70 % of the area and more, flips), ``standard`` (ImageNet's usual crops, flips and colours),
    ``strong`` (RandAugment and random erasing beside these crops, as DeiT has it).
    """

    # Light: crops and flips; standard: ImageNet's usual ones and colours; strong: RandAugment and erasing beside.
    preset: Literal["none", "light", "standard", "strong"] = "none"
    # Random resized crop: smallest and largest part of the area.
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None  # smallest and largest width by height of such a crop
    hflip: float | None = Field(None, ge=0, le=1)  # probability of a flip from left to right
    vflip: float | None = Field(None, ge=0, le=1)  # probability of a flip from top to bottom
    color_jitter: float | None = Field(None, ge=0, le=1)  # of brightness, contrast and saturation
    auto_augment: str | None = None  # timm's name: rand-m9-mstd0.5-inc1, augmix-m3-w3, original, ...
    erasing: float | None = Field(None, ge=0, le=1)  # probability that a rectangle is erased

    @property
    def settings(self) -> dict[str, Any]:
        """The preset's settings, and those that are given."""
        given = {name: value for name, value in self if name != "preset" and value is not None}
        return {name: value for name, value in (PRESETS[self.preset] | given).items() if value}


class Augmentation:
    """Pictures to augmented, normalised images.

    Args:
        settings: of :attr:`AugmentationConfig.settings`.
        shape: of an image, (C, H, W). Grey images are augmented as colour ones are, and turned grey again.
        interpolation: as of the images that are not augmented.

    Raises:
        ConfigError: timm refuses a setting.
    """

    def __init__(
        self, settings: dict[str, Any], shape: tuple[int, int, int], normalise: Normalisation, interpolation: str
    ) -> None:
        from timm.data import create_transform  # takes seconds
        from torchvision.transforms import Compose

        self._mode = "L" if shape[0] == 1 else "RGB"
        known: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "color_jitter": None}
        known |= {name: value for name, value in settings.items() if name != "erasing"}
        try:
            primary, secondary, final = create_transform(
                shape,
                is_training=True,
                separate=True,
                re_prob=settings.get("erasing", 0.0),
                re_mode="pixel",
                interpolation=interpolation,
                mean=normalise.mean,
                std=normalise.std,
                **known,
            )
        except Exception as error:  # timm asserts, and looks names up
            reason = " ".join(str(error).split()) or type(error).__name__
            shown = ", ".join(f"{name}={value}" for name, value in settings.items())
            raise ConfigError(f"task.augmentation with {shown}: timm refuses it: {reason}") from error
        self._on_colours, self._final = Compose([primary, secondary]), final

    def __call__(self, picture: Image.Image, seed: int) -> Tensor:
        """A view of a picture, float32 (C, H, W): the same for the same seed, whatever was drawn before."""
        with _seeded(seed):
            view: Tensor = self._final(self._on_colours(picture.convert("RGB")).convert(self._mode))
        return view


class AugmentedImages(Dataset[tuple[Tensor, int]]):
    """Views of the rows of a data set, another one in each epoch: item ``epoch * rows + i`` is that of row i.

    Args:
        images: whose rows these are.
        seed: of the views.
    """

    by_epoch = True  # what a sampler of training rows looks at

    def __init__(self, images: ImageDataset, augmentation: Augmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed, self.decodes = images, augmentation, seed, True

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """(images (K, C, H, W) float32, targets (K, ...)); see :meth:`ImageDataset.__getitems__`."""
        epochs = {index // len(self.images) for index in indices}
        assert len(epochs) == 1  # a batch is of one epoch
        items = [index % len(self.images) for index in indices]
        return self.images.read(items, view_of(self.augmentation, self.seed, epochs.pop(), items))


def view_of(augmentation: Augmentation, seed: int, epoch: int, items: Sequence[int] | Rows) -> View:
    """What makes the views of some items of a data set, in their order, in an epoch."""
    return lambda picture, place: augmentation(picture, noise.key(seed, "augmentation", epoch, int(items[place])))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within the context, the global generators that timm and torchvision draw from start at a seed."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
