"""Images that differ from those of training: what a posterior is for.

A shift changes the images of a split and keeps their number; each image depends on its row alone, so that every method
sees the same ones in batches of any size. Beside those of ``SHIFTS`` there is one for each strength of each corruption
(``blur_3``), see :mod:`proxscore.vision.corruptions`. A new shift is a function here and its name in ``SHIFTS`` and in
:mod:`proxscore.config.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from proxscore.vision.corruptions import CORRUPTIONS, STRENGTHS, CorruptedImage, rotation
from proxscore.vision.images import Batch, ImageDataset, Normalisation

ANGLE = 30.0  # degrees, counter-clockwise
NOISE = 0.25  # standard deviation, as a fraction of the distance between an image's darkest and brightest pixel


def rotated(image: Tensor, generator: torch.Generator) -> Tensor:
    """Turned by 30 degrees; beyond its border an image goes on as it ends. (C, H, W) to the same."""
    return rotation(image, ANGLE, generator)


def noisy(image: Tensor, generator: torch.Generator) -> Tensor:
    """With Gaussian noise whose standard deviation is a quarter of the image's own range. (C, H, W) to the same."""
    noise = torch.randn(image.shape, generator=generator)
    return image + NOISE * (image.max() - image.min()) * noise


def photographs(image: Tensor, generator: torch.Generator) -> Tensor:
    """A square of random place and size from a photograph of scikit-learn's (a temple, a flower), as large and with the same
    range as the image: nothing that the network knows. (C, H, W) to the same."""
    square = photograph(image.shape, generator)
    low, high = square.min(), square.max()
    return image.min() + (square - low) / (high - low).clamp(min=1.0) * (image.max() - image.min())


def photograph(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A square of random place and size from one of scikit-learn's photographs, in the given shape (C, H, W): float32, 0 to
    255."""
    photos = _photos()
    photo = photos[_integer(len(photos), generator)]
    channels, height, width = shape
    largest = min(photo.shape[1:])
    side = min(max(height, width), largest)
    side += _integer(largest - side + 1, generator)
    top, left = (_integer(size - side + 1, generator) for size in photo.shape[1:])
    square = photo[:, top : top + side, left : left + side]
    if channels == 1:
        square = square.mean(0, keepdim=True)
    elif channels != 3:
        square = square.mean(0, keepdim=True).expand(channels, -1, -1)
    return nn.functional.interpolate(square[None], (height, width), mode="bilinear", antialias=True)[0]


@cache
def _photos() -> list[Tensor]:
    from sklearn.datasets import load_sample_images  # takes most of a second

    return [torch.tensor(photo, dtype=torch.float32).permute(2, 0, 1) for photo in load_sample_images().images]


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


@dataclass(frozen=True)
class Shift:
    """A way to change an image.

    Attributes:
        change: an image (C, H, W) and a generator of random numbers to the changed image of the same shape.
        known: its label still holds.
    """

    change: Callable[[Tensor, torch.Generator], Tensor]
    known: bool


SHIFTS: dict[str, Shift] = {
    "rotated": Shift(rotated, True),
    "noisy": Shift(noisy, True),
    "photographs": Shift(photographs, False),
}


def shift_named(name: str, normalisation: Normalisation) -> Shift:
    """The shift of this name: one of ``SHIFTS``, or a corruption and its strength, as ``blur_3``.

    Args:
        normalisation: of the images; corruptions are of pixels.
    """
    return SHIFTS[name] if name in SHIFTS else _corruption(name, normalisation)


def _corruption(name: str, normalisation: Normalisation) -> Shift:
    corruption, _, strength = name.rpartition("_")
    return Shift(partial(_changed, CorruptedImage(corruption, int(strength), normalisation)), True)


def _changed(change: CorruptedImage, image: Tensor, generator: torch.Generator) -> Tensor:
    return change(image, generator.initial_seed())  # which is the row


#: All names of ``evaluation.shifts``.
NAMES = (*SHIFTS, *(f"{corruption}_{strength}" for corruption in CORRUPTIONS for strength in STRENGTHS))


class ShiftedImages(Dataset[tuple[Tensor, int]]):
    """The rows of a data set, their images changed."""

    def __init__(self, images: ImageDataset, shift: Shift) -> None:
        self._images, self._shift, self.decodes = images, shift, images.decodes

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = [self._images.__getitems__([index]) for index in indices]  # one may be left out as unreadable
        changed = [
            self._shift.change(image, torch.Generator().manual_seed(index))
            for index, (images, _) in zip(indices, batch, strict=True)
            for image in images
        ]
        shape = batch[0][0].shape[1:] if batch else ()
        return torch.stack(changed) if changed else torch.empty(0, *shape), torch.cat([labels for _, labels in batch])
