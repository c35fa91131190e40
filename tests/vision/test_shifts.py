"""Shifted images: against scipy, by their own definitions, and through a training job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.training import launch
from proxscore.vision.image_task import ImageTask
from proxscore.vision.shifts import NOISE, SHIFTS, ShiftedImages, rotated


def task(kind: str = "digits") -> ImageTask:
    return ImageTask(configuration.parse({"task": {"data": {"kind": kind}}}).task)


def test_rotation_is_that_of_scipy() -> None:
    """Bilinear, about the centre, the border carried on: to float32's rounding."""
    image = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(0))
    turned = rotated(image, torch.Generator())
    expected = [ndimage.rotate(channel.numpy(), 30, reshape=False, order=1, mode="nearest") for channel in image]
    np.testing.assert_allclose(turned.numpy(), np.stack(expected), atol=1e-5)


def test_noise_is_a_quarter_of_the_images_range() -> None:
    test = task().data.test
    images, _ = test.__getitems__(range(200))
    changed, _ = ShiftedImages(test, SHIFTS["noisy"]).__getitems__(range(200))
    scale = NOISE * (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))
    white = (changed - images).flatten() / scale.repeat_interleave(64)
    assert white.std().item() == pytest.approx(1.0, abs=4 / (2 * white.numel()) ** 0.5)  # four standard errors
    assert white.mean().item() == pytest.approx(0.0, abs=4 / white.numel() ** 0.5)


def test_photographs_have_the_range_of_the_image_that_they_replace_and_none_of_its_content() -> None:
    test = task().data.test
    images, _ = test.__getitems__(range(100))
    changed, _ = ShiftedImages(test, SHIFTS["photographs"]).__getitems__(range(100))
    assert changed.shape == images.shape
    torch.testing.assert_close(changed.amax((1, 2, 3)), images.amax((1, 2, 3)))
    torch.testing.assert_close(changed.amin((1, 2, 3)), images.amin((1, 2, 3)))
    correlation = torch.corrcoef(torch.stack([images.flatten(), changed.flatten()]))[0, 1]
    assert abs(correlation) < 0.2
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 100


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_is_the_same_in_any_batch_and_keeps_its_label(name: str) -> None:
    test = task().data.test
    shifted = ShiftedImages(test, SHIFTS[name])
    assert len(shifted) == len(test)
    together, labels = shifted.__getitems__([5, 3, 8])
    alone, label = shifted.__getitems__([8])
    assert torch.equal(together[2], alone[0])
    assert torch.equal(labels, test.__getitems__([5, 3, 8])[1])
    assert label[0] == labels[2]


def test_a_job_judges_every_variant_under_every_shift(tmp_path: Path) -> None:
    """Labelled shifts have all metrics, photographs those that need no label; both methods see the same images."""
    config = configuration.parse(
        {
            "name": "shifts",
            "task": {"model": {"name": "small_cnn"}, "data": {"kind": "digits"}},
            "method": {"lr": 0.01},
            "baseline": {"kind": "adamw"},
            "training": {"epochs": 3, "workers": 0, "device": "cpu", "storage": str(tmp_path / "runs")},
            "evaluation": {"draws": 4, "validation_draws": 1, "shifts": list(SHIFTS)},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }
    )
    point, posterior = launch.run(config)
    for outcome, variants in ((point, {"point"}), (posterior, {"posterior", "mean"})):
        assert outcome.results["shifted"].keys() == SHIFTS.keys()
        for shift, found in outcome.results["shifted"].items():
            assert found.keys() == variants
            for variant, metrics in found.items():
                plain = outcome.results["test"][variant]
                assert ("accuracy" in metrics) == SHIFTS[shift].known
                assert metrics["confidence"] < plain["confidence"] + 0.05
                if SHIFTS[shift].known:
                    assert metrics["accuracy"] < plain["accuracy"]
                    assert metrics["nll"] > plain["nll"]


def test_an_unknown_shift_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.shifts"):
        configuration.parse({"evaluation": {"shifts": ["upside down"]}})
