"""Corruptions against PIL, scipy and colorsys, and what all of them have in common."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image
from torch import Tensor

from proxscore import config as configuration
from proxscore.config import training as settings
from proxscore.vision.corruptions import CORRUPTIONS, STRENGTHS, CorruptedImage, NumberedImages, corrupted
from proxscore.vision.image_task import ImageTask
from proxscore.vision.images import Normalisation
from proxscore.vision.shifts import NAMES, SHIFTS


def photo(size: int = 56) -> Tensor:
    """A photograph in colour, (3, size, size), pixels in [0, 1]."""
    picture = Image.fromarray(load_sample_image("flower.jpg")).crop((200, 100, 500, 400)).resize((size, size))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def digits() -> ImageTask:
    return ImageTask(configuration.parse({"task": {"data": {"kind": "digits"}}}).task)


def parameter(name: str, strength: int) -> float:
    return CORRUPTIONS[name].parameters[strength - 1]


def test_names_are_those_of_the_settings() -> None:
    assert tuple(CORRUPTIONS) == settings.CORRUPTIONS
    assert tuple(SHIFTS) == settings.SHIFTS
    found = configuration.parse({"evaluation": {"shifts": list(NAMES)}}).evaluation.shifts
    assert tuple(found) == NAMES


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pixels_stay_pixels_and_get_worse_with_strength(name: str, channels: int) -> None:
    image = photo()[:channels]
    changes = []
    for strength in STRENGTHS:
        changed = corrupted(image, name, strength, row=4)
        assert changed.shape == image.shape
        assert changed.dtype == torch.float32
        assert 0 <= changed.min() <= changed.max() <= 1
        changes.append(float((changed - image).abs().mean()))
    assert changes == sorted(changes)
    assert changes[0] > 0


def test_noise_has_its_standard_deviation_and_depends_on_row_corruption_strength_and_seed() -> None:
    grey = torch.full((1, 100, 100), 0.5)
    noise = corrupted(grey, "gaussian_noise", 1, row=3) - grey
    assert float(noise.std()) == pytest.approx(parameter("gaussian_noise", 1), rel=0.03)
    assert torch.equal(noise, corrupted(grey, "gaussian_noise", 1, row=3) - grey)
    scaled = noise * parameter("gaussian_noise", 2) / parameter("gaussian_noise", 1)
    others = [(2, 3, 0), (1, 4, 0), (1, 3, 1)]
    for strength, row, seed in others:
        other = corrupted(grey, "gaussian_noise", strength, row, seed) - grey
        assert not torch.allclose(other, noise)
        assert not torch.allclose(other, scaled)


def test_blur_is_that_of_scipy_scaled_to_the_image() -> None:
    image = photo(112)
    sigma = parameter("blur", 3) * 112 / 224
    expected = [ndimage.gaussian_filter(c.numpy(), sigma, mode="mirror", radius=round(4 * sigma)) for c in image]
    np.testing.assert_allclose(corrupted(image, "blur", 3, row=0), np.stack(expected), atol=1e-5)


def test_brightness_adds_to_the_value_of_hsv() -> None:
    image = photo(8)
    image[:, 0, 0] = 0  # black has no hue
    found = corrupted(image, "brightness", 4, row=0)
    for i, j in np.ndindex(8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, i, j].double().tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + parameter("brightness", 4), 1))
        np.testing.assert_allclose(found[:, i, j], expected, atol=1e-5)


def test_contrast_keeps_the_mean_and_a_fraction_of_the_spread() -> None:
    image = photo()
    found = corrupted(image, "contrast", 2, row=0)
    torch.testing.assert_close(found.mean((1, 2)), image.mean((1, 2)))
    torch.testing.assert_close(found.std((1, 2)), parameter("contrast", 2) * image.std((1, 2)))


def test_rotation_is_that_of_scipy() -> None:
    image = photo(31)
    degrees = parameter("rotation", 2)
    expected = [ndimage.rotate(channel.numpy(), degrees, reshape=False, order=1, mode="nearest") for channel in image]
    np.testing.assert_allclose(corrupted(image, "rotation", 2, row=0), np.stack(expected), atol=1e-4)


def test_compression_is_that_of_pil() -> None:
    """Both use libjpeg; decoders may differ by a step or two."""
    image = photo(64)
    content = io.BytesIO()
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(content, "JPEG", quality=int(parameter("jpeg", 3)))
    theirs = np.asarray(Image.open(content)).transpose(2, 0, 1) / 255
    difference = np.abs(corrupted(image, "jpeg", 3, row=0).numpy() - theirs)
    assert difference.mean() < 0.01
    assert np.abs(image.numpy() - theirs).mean() > 3 * difference.mean()


def test_pixelation_is_an_average_over_boxes() -> None:
    image = photo(8)
    halves = torch.nn.functional.avg_pool2d(image, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    np.testing.assert_allclose(corrupted(image, "pixelation", 5, row=0), halves, atol=1 / 255)


def test_a_corrupted_row_is_the_same_in_any_batch_and_brings_its_number() -> None:
    test = digits().data.test
    change = CorruptedImage("gaussian_noise", 3, Normalisation((0.5,), (0.5,)))
    together, numbered = NumberedImages(test, change).__getitems__([7, 2, 9])
    alone, _ = NumberedImages(test, change).__getitems__([9])
    some, of_some = NumberedImages(test, change, only=np.array([2, 9])).__getitems__([1])
    assert torch.equal(together[2], alone[0])
    assert torch.equal(together[2], some[0])
    assert numbered[:, 1].tolist() == [7, 2, 9]
    assert numbered[:, 0].tolist() == test.labels[[7, 2, 9]].tolist()
    assert of_some.tolist() == [[int(test.labels[9]), 9]]


def test_a_shift_of_a_job_is_the_corruption_of_its_name() -> None:
    task = digits()
    shifted, known = task.shifted("contrast_2")
    images, _ = task.data.test.__getitems__([3])
    expected = corrupted((images[0] * 0.5 + 0.5).clamp(0, 1), "contrast", 2, row=3)
    torch.testing.assert_close(shifted.__getitems__([3])[0][0], (expected - 0.5) / 0.5)
    assert known
