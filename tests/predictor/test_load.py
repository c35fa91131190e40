"""``proxscore.load``: what a posterior predicts without its training data is what training measured of it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_calibration_error

import proxscore
from proxscore.config import ConfigError
from proxscore.posterior.settled import UntilSettled

if TYPE_CHECKING:
    from photographs import Photographs

Opened = Callable[[], Any]


@pytest.fixture
def opened(photographs: Photographs) -> Opened:
    """Opens the posterior."""
    return lambda: proxscore.load(photographs.run, device="cpu")


def test_the_test_images_are_predicted_as_training_evaluated_them(photographs: Photographs, opened: Opened) -> None:
    predictor = opened()
    found = predictor.predict(photographs.tests)
    assert found.classes == ("blue", "green", "red")
    truth = torch.tensor([found.classes.index(path.parent.name) for path in photographs.files])
    metrics = photographs.result["runs"][0]["test"]["posterior"]
    nll = torch.nn.functional.nll_loss(found.mean.double().log(), truth)
    assert nll.item() == pytest.approx(metrics["nll"], abs=1e-5)
    assert (found.mean.argmax(1) == truth).float().mean().item() == pytest.approx(metrics["accuracy"])
    assert found.total.mean().item() == pytest.approx(metrics["entropy"], abs=1e-5)
    assert found.aleatoric.mean().item() == pytest.approx(metrics["expected_entropy"], abs=1e-5)
    assert found.epistemic.mean().item() == pytest.approx(metrics["mutual_information"], abs=1e-5)
    ece = multiclass_calibration_error(found.mean, truth, 3, n_bins=15)
    assert ece.item() == pytest.approx(metrics["ece"], abs=1e-4)
    mean = predictor.predict(photographs.tests, draws=0)
    nll = torch.nn.functional.nll_loss(mean.mean.double().log(), truth)
    assert nll.item() == pytest.approx(photographs.result["runs"][0]["test"]["mean"]["nll"], abs=1e-5)
    assert (mean.epistemic < 1e-5).all()


def test_draws_until_settled_and_draws_of_the_last_layer(photographs: Photographs, opened: Opened) -> None:
    """The table says how many draws there were, and how near they are; no more are taken than there are statistics of."""
    predictor = opened()
    known = predictor.statistics.draws
    loose = predictor.predict(photographs.tests, draws=UntilSettled(0.5, least=2))
    assert set(loose.to_frame()["draws"]) == {2}
    torch.testing.assert_close(loose.mean, predictor.predict(photographs.tests, draws=2).mean)
    assert "2 to 2 draws, 2.0 on average (seed 3)" in repr(loose)
    tight = predictor.predict(photographs.tests, draws=UntilSettled(1e-9, least=2))
    assert set(tight.to_frame()["draws"]) == {known}
    many = predictor.predict(photographs.tests, draws=known)
    torch.testing.assert_close(tight.mean, many.mean)
    errors = tight.to_frame()["monte_carlo_error"]
    assert (errors > 1e-9).any()
    assert (errors < 0.5).all()
    assert "draws" not in many.to_frame()
    head = predictor.predict(photographs.tests, draws=known, last_layer=True)
    assert not torch.equal(head.mean, predictor.predict(photographs.tests, draws=0).mean)
    torch.testing.assert_close(predictor.predict(photographs.tests, draws=known).mean, many.mean)
    with pytest.raises(ConfigError, match="last_layer=True: draws is 0"):
        predictor.predict(photographs.tests, draws=0, last_layer=True)


def test_sets_hold_the_label_of_validation_rows_as_often_as_they_say(photographs: Photographs, opened: Opened) -> None:
    predictor = opened()
    found = predictor.predict(photographs.tests)
    assert set(predictor.validation["sets"]) == {"0.5", "0.8", "0.9", "0.95"}  # 60 rows are too few for .99
    for coverage in (0.5, 0.95):
        floor = predictor.validation["sets"][f"{coverage:g}"]
        for row, names in enumerate(found.sets(coverage)):
            expected = {found.classes[k] for k in range(3) if found.mean[row, k] >= floor - 1e-9}
            assert set(names) == expected
    with pytest.raises(ConfigError, match=r"coverage 0\.99 was not calibrated"):
        found.sets(0.99)


def test_files_bytes_pictures_and_arrays_are_one(photographs: Photographs, opened: Opened) -> None:
    predictor, files = opened(), photographs.files[:6]
    expected = predictor.predict(files).mean
    encoded = [path.read_bytes() for path in files]
    pictures = [Image.open(path) for path in files]
    arrays = [np.asarray(picture) for picture in pictures]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    fractions = [array / 255 for array in arrays]
    frame = pd.DataFrame({"image": encoded, "other": 1})
    kinds = [encoded, pictures, arrays, tensors, fractions, frame, [{"bytes": each} for each in encoded]]
    for images in (*kinds, pd.DataFrame({"path": list(map(str, files))}), [array.tolist() for array in arrays]):
        torch.testing.assert_close(predictor.predict(images).mean, expected, atol=1e-5, rtol=0)
    one = predictor.predict(files[0])
    torch.testing.assert_close(one.mean, expected[:1], atol=1e-5, rtol=0)
    assert len(predictor.predict(arrays[0])) == 1  # three axes of three channels: one picture


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("missing.png", "no such file"),
        (b"no image", "not in a known image format"),
        (np.full((24, 24, 3), 300), "pixels from 300 to 300: integers go from 0 to 255"),
        (np.full((24, 24, 3), 2.0), "floating-point numbers go from 0 to 1"),
        (np.full((24, 24, 3), np.nan), "pixels from nan to nan"),
        (np.zeros((24, 24, 4), dtype=np.uint8), "of one or three channels"),
        (np.zeros(24), r"an array of shape \(24,\)"),
        (object(), "a object is no image"),
        (None, "a NoneType is no image"),
        ([["a"]], "no array of numbers"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_or_kept_as_a_row(
    image: Any, reason: str, photographs: Photographs, opened: Opened
) -> None:
    predictor, good = opened(), photographs.files[0]
    with pytest.raises(ConfigError, match=reason):
        predictor.predict([good, image])
    found = predictor.predict([good, image, good], errors="keep")
    assert list(found.errors) == [1]
    frame = found.to_frame()
    assert frame["error"].isna().tolist() == [True, False, True]
    assert frame["confidence"].isna().tolist() == [False, True, False]
    assert frame["label"][0] == frame["label"][2]
    assert frame["set"][1] is None
    assert found.labels[1] is None


def test_few_rows_in_one_pass_are_as_many_rows_draw_by_draw(photographs: Photographs, opened: Opened) -> None:
    predictor, files = opened(), photographs.files
    whole = predictor.predict(files).mean  # thirty rows: one draw after another
    for first in range(0, len(files), 10):
        part = predictor.predict(files[first : first + 10])
        torch.testing.assert_close(part.mean, whole[first : first + 10], atol=1e-5, rtol=0)
    with predictor.ready(5, 3) as draws:
        assert draws.stacked  # and no layer has refused
    fewer = predictor.predict(files[:3], draws=2).mean  # the first two of the five that are ready
    torch.testing.assert_close(fewer, opened().predict(files[:3], draws=2).mean, atol=1e-5, rtol=0)


def test_no_more_draws_than_there_are_statistics_of(photographs: Photographs, opened: Opened) -> None:
    predictor = opened()
    with pytest.raises(ConfigError, match="known of 5 draws: ask for at most so many"):
        predictor.predict(photographs.files[:1], draws=6)
    with pytest.raises(ConfigError, match="seed 3 alone"):
        predictor.predict(photographs.files[:1], seed=4)
    assert len(predictor.predict(photographs.files[:1])) == 1  # and it goes on
    for wrong, message in (
        ({"draws": -1}, "draws is -1"),
        ({"errors": "drop"}, "errors is 'drop'"),
        ({"foo": 1}, "no foo"),
    ):
        with pytest.raises(ConfigError, match=message):
            predictor.predict(photographs.files[:1], **wrong)


def test_weights_and_a_warning_go_with_it(opened: Opened) -> None:
    predictor = opened()
    draws, sd = predictor.sample(50), predictor.sd()
    name = "stages.0.0.conv1_kxk.conv.weight" if "stages.0.0.conv1_kxk.conv.weight" in sd else next(iter(sd))
    assert draws[name].std(0).mean().item() == pytest.approx(sd[name].mean().item(), rel=0.2)
    assert predictor.verdict == "still moving"  # after four epochs
    assert "this posterior is still moving" in repr(predictor)
    assert "still moving" in repr(predictor.predict(np.zeros((1, 24, 24, 3), dtype=np.uint8)))


def test_a_fresh_process_needs_the_folder_alone(photographs: Photographs, tmp_path: Path) -> None:
    """Without a network connection, and in another folder."""
    shutil.copytree(proxscore.load(photographs.run).folder, tmp_path / "alone")
    files = [str(path) for path in photographs.files[:4]]
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a request')\n"
        "socket.socket.connect = refuse\n"
        "import json, proxscore\n"
        f"found = proxscore.load('alone').predict({files!r})\n"
        "print(json.dumps(found.mean.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = proxscore.load(photographs.run).predict(photographs.files[:4]).mean
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout.splitlines()[-1])), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocessing": {"channels": 2, "height": 24, "width": 24}}, "data.preprocessing: "),
        ({"preprocessing": {"channels": 3}}, "data.preprocessing: 'height'"),
        ({"preprocessing": None, "shape": None}, "has no shape"),
        ({"class_names": None, "classes": None}, "class_names"),
        ({"class_names": ["a", "b"]}, "posterior of another architecture"),
    ],
)
def test_a_damaged_description_is_named(
    change: dict[str, Any], message: str, photographs: Photographs, tmp_path: Path
) -> None:
    shutil.copytree(proxscore.load(photographs.run).folder, tmp_path / "posterior")
    file = tmp_path / "posterior" / "posterior.json"
    described = json.loads(file.read_text())
    described["data"] |= change
    file.write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=message):
        proxscore.load(tmp_path)


def test_what_is_no_posterior_is_refused(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path, "no posterior there"),
        (tmp_path / "absent", "no posterior there"),
        ("s3://bucket/posterior", "give a folder, runs:/ID"),
    ):
        with pytest.raises(ConfigError, match=message):
            proxscore.load(source)
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "PNG")
    from proxscore.posterior import Posterior

    Posterior({"w": torch.zeros(2)}).save(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"Posterior\.load"):
        proxscore.load(tmp_path / "own")
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        proxscore.load(tmp_path / "own", device="tpu")
