"""Corruptions of images in five strengths, after Hendrycks and Dietterich (arXiv 1903.12261).

Numbers are those of their ImageNet-C, where it has the corruption; rotation is our own. A length in pixels is one of an image
of 224 x 224, and is scaled to the image at hand; images below 32 pixels count as 32, where a blur would otherwise be none at
all. A corruption sees pixels in [0, 1] and gives such pixels, and depends on nothing but the row, the corruption and the
strength. A new one is a function here and a line in ``CORRUPTIONS``, and its name in :mod:`proxscore.config.training`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from proxscore.vision.images import Batch, ImageDataset, Normalisation
from proxscore.vision.splits import Rows

STRENGTHS = (1, 2, 3, 4, 5)
REFERENCE, SMALLEST = 224, 32  # pixels of a side
Change = Callable[[Tensor, float, torch.Generator], Tensor]


def gaussian_noise(image: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """With independent noise of this standard deviation on every pixel and channel."""
    return image + sd * torch.randn(image.shape, generator=generator)


def blur(image: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Convolved with a Gaussian of this standard deviation, in pixels of a side of 224; four of them are kept."""
    sigma *= max(min(image.shape[1:]), SMALLEST) / REFERENCE
    radius = max(round(4 * sigma), 1)
    radius = min(radius, min(image.shape[1:]) - 1)  # the border is mirrored
    if radius < 1:
        return image
    return functional.gaussian_blur(image, [2 * radius + 1] * 2, [sigma] * 2)


def brightness(image: Tensor, added: float, generator: torch.Generator) -> Tensor:
    """With this much added to the value of HSV: hue and saturation stay."""
    value = image.amax(0, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, image * (brighter / value.clamp(min=1e-12)), brighter)


def contrast(image: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """With this fraction of each pixel's distance from the mean of its channel."""
    mean = image.mean((1, 2), keepdim=True)
    return mean + kept * (image - mean)


def rotation(image: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turned counter-clockwise, bilinearly; beyond its border an image goes on as it ends."""
    angle = torch.deg2rad(torch.tensor(degrees))
    turn = torch.stack([angle.cos(), -angle.sin(), torch.zeros(()), angle.sin(), angle.cos(), torch.zeros(())])
    grid = nn.functional.affine_grid(turn.view(1, 2, 3), [1, *image.shape], align_corners=False)
    return nn.functional.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


def jpeg(image: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Compressed by JPEG at this quality, of at most 100."""
    if image.shape[0] not in (1, 3):
        return torch.cat([jpeg(channel[None], quality, generator) for channel in image])
    return functional.jpeg(_bytes(image), int(quality)).float() / 255


def pixelation(image: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """With this fraction of the resolution: averaged over boxes, and back by nearest neighbour."""
    height, width = image.shape[1:]
    small = (max(int(width * kept), 1), max(int(height * kept), 1))
    channels = [Image.fromarray(channel).resize(small, Image.Resampling.BOX) for channel in _bytes(image).numpy()]
    back = [np.asarray(channel.resize((width, height), Image.Resampling.NEAREST)) for channel in channels]
    return torch.from_numpy(np.stack(back)).float() / 255


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Corruption:
    """A way to spoil an image.

    Attributes:
        change: pixels (C, H, W) in [0, 1], a parameter and a generator to pixels of the same shape.
        parameters: of the strengths 1 to 5.
        meaning: what the parameter is.
    """

    change: Change
    parameters: tuple[float, float, float, float, float]
    meaning: str


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), "standard deviation of the noise"),
    "blur": Corruption(blur, (1, 2, 3, 4, 6), "standard deviation of the Gaussian, pixels of a side of 224"),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3, 0.4, 0.5), "added to the value of HSV"),
    "contrast": Corruption(contrast, (0.4, 0.3, 0.2, 0.1, 0.05), "fraction of the contrast that is left"),
    "rotation": Corruption(rotation, (10, 20, 30, 40, 50), "degrees, counter-clockwise"),
    "jpeg": Corruption(jpeg, (25, 18, 15, 10, 7), "quality of the JPEG"),
    "pixelation": Corruption(pixelation, (0.6, 0.5, 0.4, 0.3, 0.25), "fraction of the resolution that is left"),
}


def corrupted(image: Tensor, name: str, strength: int, row: int, seed: int = 0) -> Tensor:
    """Pixels (C, H, W) in [0, 1] under a corruption: the same for the same row, corruption, strength and seed."""
    found = CORRUPTIONS[name]
    state = np.random.SeedSequence([seed, row, zlib.crc32(name.encode()), strength]).generate_state(2)
    generator = torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
    return found.change(image, found.parameters[strength - 1], generator).clamp(0, 1)


class NumberedImages(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a data set with their numbers, their images changed or as they are.

    A batch is images (K, C, H, W) and long (K, 2): label, and the row's number in the data set.

    Args:
        images: whose rows they are.
        change: a normalised image (C, H, W) and its row's number to the changed one.
        only: numbers of the rows; none: all.
    """

    def __init__(
        self, images: ImageDataset, change: Callable[[Tensor, int], Tensor] | None = None, only: Rows | None = None
    ) -> None:
        self._images, self._change, self.decodes = images, change, images.decodes
        self._rows = np.arange(len(images), dtype=np.int64) if only is None else only

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = self._rows[np.asarray(indices, dtype=np.int64)].tolist()
        images, labels = self._images.__getitems__(rows)
        if len(labels) < len(rows):  # some are left out as unreadable: which?
            rows = [row for row in rows if len(self._images.__getitems__([row])[1])]
        if self._change is not None and rows:
            images = torch.stack([self._change(image, row) for image, row in zip(images, rows, strict=True)])
        return images, torch.stack([labels, torch.tensor(rows, dtype=torch.long)], 1)


@dataclass(frozen=True)
class CorruptedImage:
    """The change of normalised images by a corruption: back to pixels, corrupted, clamped, and normalised again."""

    name: str
    strength: int
    normalisation: Normalisation
    seed: int = 0

    def __call__(self, image: Tensor, row: int) -> Tensor:
        pixels = corrupted(self.normalisation.undone(image), self.name, self.strength, row, self.seed)
        return self.normalisation.again(pixels)
