"""scikit-learn's digits: 1,797 images of 1x8x8, ten classes, installed with the package.

Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from proxscore.vision.images import MemoryReader, Normalisation, Source, check_labels
from proxscore.vision.sources.base import ImageSource

_PEAK = 16  # each pixel counts the dark pixels of a 4x4 block of the scan


class DigitsConfig(ImageSource):
    """scikit-learn's 1,797 digits, 8x8 pixels: comes with the installation."""

    kind: Literal["digits"] = "digits"

    def load(self) -> Source:
        return load(self)


def load(config: DigitsConfig) -> Source:
    """One pool of 1,797 rows; pixels 0..16 are scaled to [0, 1] before normalisation."""
    from sklearn.datasets import load_digits  # takes a second, which readers of other data need not wait

    digits = load_digits()
    pixels = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
    labels = digits.target.astype(np.int64)
    classes = tuple(str(name) for name in digits.target_names)
    check_labels(labels, len(classes), lambda row: f"scikit-learn's digits, row {row}")
    reader = MemoryReader(pixels, labels, Normalisation.of(config.mean, config.std, 1), _PEAK)
    return Source({"train": reader}, classes, (1, *pixels.shape[2:]))
