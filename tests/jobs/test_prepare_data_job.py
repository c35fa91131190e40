"""jobs/prepare_data.py: what comes out shows what went in, whatever the form of the source, and nothing comes out half."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from proxscore.vision.data import load_images
from proxscore.vision.sources.idx import IdxConfig
from proxscore.vision.sources.image_folder import ImageFolderConfig
from proxscore.vision.sources.parquet import ParquetConfig

if TYPE_CHECKING:
    from conftest import Main

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 9, 7, 3), dtype=np.uint8)
CLASSES = ("ant", "bee", "wasp")


@pytest.fixture
def prepare(job: Callable[[str], Main], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    monkeypatch.chdir(tmp_path)
    return job("prepare_data")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images of each of three classes, in different formats."""
    folder = tmp_path / "photos"
    for number, pixels in enumerate(PIXELS):
        file = folder / CLASSES[number % 3] / f"{number:02d}.{('png', 'bmp', 'tif')[number % 3 - number % 2]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


def read(table: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split, by pyarrow alone."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(table.glob("*.parquet")):
        found.setdefault(file.name.split("-")[0], []).extend(pq.read_table(file).to_pylist())
    return found


def summary(table: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((table / "dataset.json").read_text())
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_becomes_shards_with_its_own_bytes_labels_and_stratified_splits(
    workers: str, prepare: Main, photos: Path
) -> None:
    options = ["--test-fraction", "0.2", "--validation-fraction", "0.1", "--rows-per-shard", "25", "--workers", workers]
    assert prepare(["photos", "table", *options]) == 0
    rows = read(Path("table"))
    assert {split: len(own) for split, own in rows.items()} == {"train": 42, "validation": 6, "test": 12}
    files = {file.relative_to(photos).as_posix(): file for file in photos.rglob("*.*")}
    everything = [row for own in rows.values() for row in own]
    assert sorted(row["image"]["path"] for row in everything) == sorted(files)
    for row in everything:
        path = row["image"]["path"]
        assert row["image"]["bytes"] == files[path].read_bytes()
        assert CLASSES[row["label"]] == path.split("/")[0]
    about = summary(Path("table"))
    assert about["counts"]["test"] == dict.fromkeys(CLASSES, 4)
    assert [(shard["file"], shard["rows"]) for shard in about["shards"]][:2] == [
        ("train-00000-of-00002.parquet", 21),
        ("train-00001-of-00002.parquet", 21),
    ]
    for shard in about["shards"]:
        metadata = pq.read_schema(f"table/{shard['file']}").metadata
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        assert features == {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
        assert json.loads(metadata[b"proxscore"])["counts"] == about["counts"]
    labels = [row["label"] for row in rows["train"][:12]]
    assert set(labels) == {0, 1, 2}, "rows are mixed, not sorted by class"
    with Image.open("table/contact_sheet.png") as sheet:
        assert sheet.width > sheet.height > 200


def test_the_table_gives_the_pixels_of_the_folder(prepare: Main, photos: Path) -> None:
    for part, count in (("train", 14), ("val", 2), ("test", 4)):
        for name in CLASSES:
            for file in sorted((photos / name).iterdir())[:count]:
                (photos / part / name).mkdir(parents=True, exist_ok=True)
                file.rename(photos / part / name / file.name)
    for name in CLASSES:
        (photos / name).rmdir()
    assert prepare(["photos", "table"]) == 0
    ours = load_images(ParquetConfig(path=Path("table"), size=6))
    theirs = load_images(ImageFolderConfig(path=photos, size=6))
    assert ours.classes == theirs.classes == CLASSES
    assert ours.splits["counts"] == theirs.splits["counts"] == {"train": 42, "validation": 6, "test": 12}
    for part in ("train", "validation", "test"):
        images = [getattr(data, part).__getitems__(range(len(getattr(data, part)))) for data in (ours, theirs)]
        first, second = (
            sorted((label.item(), image.numpy().tobytes()) for image, label in zip(*own, strict=True)) for own in images
        )
        assert first == second


def test_unreadable_files_and_duplicates_are_told_and_copies_stay_in_one_split(
    prepare: Main, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photos / "ant" / "bad.png"
    bad.write_bytes(b"no image")
    for number, file in enumerate(sorted((photos / "bee").iterdir())):
        with Image.open(file) as image:
            image.save(photos / "bee" / f"copy-{number}.png")
    shutil.copy(photos / "bee" / "copy-0.png", photos / "wasp" / "same.png")
    assert prepare(["photos", "table", "--test-fraction", "0.3"]) == 0
    about = summary(Path("table"))
    reason = "not a readable image: not in a known image format"
    assert about["unreadable"] == {"count": 1, "images": [{"image": "ant/bad.png", "reason": reason}]}
    same = about["duplicates"]
    assert sum(same["within_splits"].values()) == 21
    assert (same["pictures_in_several_splits"], same["pictures_with_different_labels"]) == (0, 1)
    assert sorted(map(len, same["groups"])) == [2] * 19 + [3]
    output = capsys.readouterr().out
    assert f"images that cannot be read, left out: 1; the first: ant/bad.png: {reason}" in output
    assert "pictures that are there with different labels: 1" in output


def test_a_picture_in_two_splits_of_the_source_is_a_warning(
    prepare: Main, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for name in CLASSES:
            for number, image in enumerate(sorted((photos / name).iterdir())):
                writer.writerow([image.relative_to(photos.parent), name, ("train", "val", "test")[number % 3]])
                if number == 0:
                    writer.writerow([image.relative_to(photos.parent), name, "test"])
    assert prepare(["labels.csv", "table"]) == 0
    assert summary(Path("table"))["duplicates"]["pictures_in_several_splits"] == 3
    assert "pictures in more than one split: 3; scores on them are too good" in capsys.readouterr().out
    assert {split: len(rows) for split, rows in read(Path("table")).items()} == {
        "train": 21,
        "validation": 21,
        "test": 21,
    }


def test_idx_keeps_its_test_split_and_a_validation_split_is_drawn_of_its_training_images(prepare: Main) -> None:
    grey = PIXELS[..., 0]
    Path("mnist").mkdir()
    for part, images in (("train", grey[:45]), ("t10k", grey[45:])):
        labels = np.arange(len(images), dtype=np.uint8) % 3
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            Path(f"mnist/{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    assert prepare(["mnist", "table", "--validation-fraction", "0.2"]) == 0
    rows = read(Path("table"))
    assert {split: len(own) for split, own in rows.items()} == {"train": 36, "validation": 9, "test": 15}
    raw = load_images(IdxConfig(path=Path("mnist"), classes=3))
    for split, own in rows.items():
        for row in own:
            number = int(row["image"]["path"].split("-")[1].split(".")[0])
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                expected = grey[45:] if split == "test" else grey[:45]
                np.testing.assert_array_equal(np.asarray(image), expected[number])
            assert row["label"] == number % 3
    assert raw.classes == tuple(summary(Path("table"))["classes"])


@pytest.mark.parametrize("form", ["keras", "medmnist", "channels first"])
def test_numpy_archives_under_the_names_of_others(form: str, prepare: Main) -> None:
    labels = np.arange(60) % 3
    names = np.array(CLASSES)[labels]
    if form == "keras":
        np.savez("data.npz", x_train=PIXELS[:40], y_train=names[:40], x_test=PIXELS[40:], y_test=names[40:])
    elif form == "medmnist":
        parts = {"train_images": PIXELS[:40], "train_labels": names[:40, None], "test_images": PIXELS[40:]}
        np.savez("data.npz", **parts, test_labels=names[40:, None])
    else:
        np.savez("data.npz", images=PIXELS.transpose(0, 3, 1, 2), labels=names)
    assert prepare(["data.npz", "table"]) == 0
    rows = read(Path("table"))
    assert set(rows) == ({"train"} if form == "channels first" else {"train", "test"})
    for split, own in rows.items():
        for row in own:
            number = int(row["image"]["path"].split("-")[1].split(".")[0]) + (40 if split == "test" else 0)
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                np.testing.assert_array_equal(np.asarray(image), PIXELS[number])
            assert row["label"] == number % 3


def test_classes_that_are_numbers_are_in_the_order_of_numbers(prepare: Main) -> None:
    np.savez("data.npz", x=PIXELS, y=np.arange(60) % 12)
    assert prepare(["data.npz", "table"]) == 0
    assert summary(Path("table"))["classes"] == [str(number) for number in range(12)]
    for row in read(Path("table"))["train"]:
        assert row["label"] == int(row["image"]["path"].split("-")[1].split(".")[0]) % 12


def test_a_table_of_texts_with_images_beside_it_becomes_one_that_holds_them_in_its_order(
    prepare: Main, photos: Path
) -> None:
    files = sorted(photos.rglob("*.*"))
    images = [{"bytes": None, "path": str(file.relative_to(photos))} for file in files]
    column = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"picture": column, "insect": [file.parent.name for file in files]})
    pq.write_table(table, photos / "all.parquet", row_group_size=7)
    assert prepare(["photos/all.parquet", "table", "--image-column", "picture", "--label-column", "insect"]) == 0
    (rows,) = read(Path("table")).values()
    assert [row["image"]["bytes"] for row in rows] == [file.read_bytes() for file in files]
    assert [CLASSES[row["label"]] for row in rows] == [file.parent.name for file in files]


def test_several_labels_of_an_image_are_a_list(prepare: Main, photos: Path) -> None:
    files = sorted(photos.rglob("*.*"))
    sets = [sorted({CLASSES[number % 3], *(CLASSES[:1] if number % 2 else ())}) for number in range(60)]
    lines = [
        f"{file.relative_to(photos.parent)},{';|'[number % 2].join(own)}"
        for number, (file, own) in enumerate(zip(files, sets, strict=True))
    ]
    Path("labels.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    assert prepare(["labels.csv", "table", "--test-fraction", "0.2"]) == 0
    assert summary(Path("table"))["multi_label"]
    expected = {str(file.relative_to(photos.parent)): own for file, own in zip(files, sets, strict=True)}
    rows = [row for own in read(Path("table")).values() for row in own]
    assert {row["image"]["path"]: [CLASSES[label] for label in row["label"]] for row in rows} == expected
    feature = json.loads(pq.read_schema("table/train-00000-of-00001.parquet").metadata[b"huggingface"])
    assert feature["info"]["features"]["label"]["feature"]["names"] == list(CLASSES)


@pytest.mark.parametrize("count", [1, 2])
def test_numbers_come_out_as_they_went_in_from_csv_numpy_and_a_table(count: int, prepare: Main, photos: Path) -> None:
    values = RNG.normal(size=(60, count)).astype(np.float32)
    files = sorted(photos.rglob("*.*"))
    with Path("n.csv").open("w", newline="") as file:
        rows = zip(files, values, strict=True)
        csv.writer(file).writerows([["path", "label"], *((f, ";".join(str(float(v)) for v in row)) for f, row in rows)])
    np.savez("n.npz", x=PIXELS, y=values if count > 1 else values[:, 0])
    for number, source in enumerate(("n.csv", "n.npz", "table-0")):
        assert (
            prepare([source, f"table-{number}", "--numbers", "--test-fraction", "0.2"][: 3 if number == 2 else 5]) == 0
        )
        told = summary(Path(f"table-{number}"))
        assert told["numbers"] is True
        labels = [row["label"] for own in read(Path(f"table-{number}")).values() for row in own]
        found = np.array(labels, np.float32).reshape(60, count)
        np.testing.assert_array_equal(np.sort(found, 0), np.sort(values, 0))
    assert told["counts"]["train"]["label" if count == 1 else "label_0"]["least"] >= values[:, 0].min()
    data = load_images(ParquetConfig(path=Path("table-2"), size=8))
    assert (data.targets, data.train.labels.shape[1]) == ("values", count)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("one", "label 'one' is no number"),
        ("nan", "label nan is not finite"),
        ("1;2", "2 numbers; the first row has 1"),
    ],
)
def test_what_is_no_number_is_named(
    text: str, reason: str, prepare: Main, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sorted(photos.rglob("*.*"))[0]
    Path("n.csv").write_text(f"path,label\n{file},1.5\n{file},{text}\n")
    assert prepare(["n.csv", "table", "--numbers"]) == 2
    assert f"n.csv, row 2 (line 3): {reason}" in capsys.readouterr().err
    assert prepare(["photos", "table", "--numbers"]) == 2
    assert "--numbers: photos is a folder, whose labels are classes" in capsys.readouterr().err


def test_large_images_are_made_smaller_and_small_ones_stay_as_they_are(prepare: Main, tmp_path: Path) -> None:
    sizes = {"wide": (200, 80), "high": (64, 130), "small": (30, 40)}
    for name, (width, height) in sizes.items():
        for number in range(2):
            file = tmp_path / "photos" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.linear_gradient("L").rotate(90 * number).resize((width, height)).convert("RGB").save(file)
    assert prepare(["photos", "table", "--size", "40"]) == 0
    for row in read(Path("table"))["train"]:
        name = row["image"]["path"].split("/")[0]
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            assert image.size == {"wide": (100, 40), "high": (40, 81), "small": (30, 40)}[name]
            assert image.format == ("PNG" if name == "small" else "JPEG")
    assert summary(Path("table"))["settings"]["jpeg_quality"] == 95


def test_the_same_command_writes_the_same_bytes_and_the_hash_is_that_of_the_content(
    prepare: Main, photos: Path
) -> None:
    for output in ("one", "two"):
        assert prepare(["photos", output, "--test-fraction", "0.2", "--workers", "1" if output == "one" else "2"]) == 0
    for file in Path("one").iterdir():
        assert file.read_bytes() == Path("two", file.name).read_bytes()
    lines = []
    for file in sorted(photos.rglob("*.*")):
        with Image.open(file) as image:
            content = f"{image.width}x{image.height} ".encode() + image.convert("RGB").tobytes()
        lines.append(f"{hashlib.sha256(content).hexdigest()} {file.parent.name}\n")
    assert summary(Path("one"))["source_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()


def one_class_of_one(folder: Path) -> None:
    for file in sorted((folder / "photos" / "bee").iterdir())[1:]:
        file.unlink()


def write_csv(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "labels.csv").write_text(text) and None


def archive(**arrays: Any) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / "data.npz", **arrays)


IMAGE = "photos/ant/00.png"


@pytest.mark.parametrize(
    ("source", "options", "change", "message"),
    [
        ("nowhere", [], None, "nowhere: no such file or folder"),
        (
            "empty",
            [],
            lambda folder: (folder / "empty").mkdir(),
            "0 class folders; expected at least two, each with images",
        ),
        ("photos", [], one_class_of_one, "class 'bee' has one image that can be read"),
        ("photos", ["--test-fraction", "0.001"], None, "--test-fraction=0.001 of 60 images is none"),
        ("photos", ["--test-fraction", "0.6", "--validation-fraction", "0.4"], None, "leave no images to train on"),
        ("photos", ["--workers", "0"], None, "--workers is 0; it must be from 1 to 1000"),
        ("labels.csv", [], write_csv("file,label\n"), "labels.csv: no column 'path'; it has file, label"),
        ("labels.csv", [], write_csv("path,label\n"), "labels.csv: has no rows"),
        (
            "labels.csv",
            [],
            write_csv(f"path,label\n{IMAGE},a\nnone.png,b\n"),
            "labels.csv, row 2 (line 3): no such file: ",
        ),
        ("labels.csv", [], write_csv(f"path,label\n{IMAGE}\n"), "labels.csv, row 1 (line 2): a label is missing"),
        ("labels.csv", [], write_csv(f"path,label\n{IMAGE},a;\n"), "labels.csv, row 1 (line 2): a label is missing"),
        ("labels.csv", [], write_csv(f"path,label,split\n{IMAGE},a,old\n"), "row 1 (line 2): split 'old' is unknown"),
        ("labels.csv", [], write_csv(f"path,label\n{IMAGE},a\n"), "all images are of one class, 'a'"),
        ("data.npz", [], archive(z=PIXELS), "data.npz: has arrays z; expected x and y"),
        ("data.npz", [], archive(x=PIXELS), "data.npz: no labels; expected x and y"),
        ("data.npz", [], archive(x=PIXELS / 255, y=np.zeros(60)), "images are float64; give uint8"),
        ("data.npz", [], archive(x=PIXELS, y=np.zeros(59, int)), "59 labels in y for 60 images in x"),
        ("data.npz", [], archive(x=PIXELS, y=np.array([{}] * 60)), "Python objects, which only a pickle can hold"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    source: str,
    options: list[str],
    change: Callable[[Path], Any] | None,
    message: str,
    prepare: Main,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if change is not None:
        change(photos.parent)
    before = sorted(Path().iterdir())
    assert prepare([source, "table", *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert sorted(Path().iterdir()) == before


def test_a_folder_that_is_not_empty_is_left_alone(
    prepare: Main, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("table").mkdir()
    Path("table/mine.txt").write_text("mine")
    assert prepare(["photos", "table"]) == 2
    assert "error: table: is not empty; name a new or an empty folder" in capsys.readouterr().err
    Path("table/mine.txt").unlink()
    assert prepare(["photos", "table"]) == 0


def test_a_split_of_the_source_is_not_drawn_anew(
    prepare: Main, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.arange(30) % 3
    np.savez("data.npz", x_train=PIXELS[:30], y_train=labels, x_test=PIXELS[30:], y_test=labels)
    assert prepare(["data.npz", "table", "--test-fraction", "0.2"]) == 2
    assert "--test-fraction=0.2: the source has a test split of its own, of 30 images" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_what_is_stopped_midway_is_never_taken_for_a_whole_table(
    stop: signal.Signals, photos: Path, repository: Path, tmp_path: Path
) -> None:
    for number in range(900):
        Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(photos / "ant" / f"more-{number}.bmp")
    command = [sys.executable, repository / "jobs" / "prepare_data.py", "photos", "table", "--rows-per-shard", "20"]
    with subprocess.Popen(
        [*command, "--workers", "1"], cwd=tmp_path, stderr=subprocess.DEVNULL, env=os.environ
    ) as process:
        while not list(tmp_path.glob(".partial-*/*.parquet")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(stop)
        assert process.wait() == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    assert not (tmp_path / "table").exists()
    if stop == signal.SIGINT:
        assert not list(tmp_path.glob(".partial-*"))


def test_a_missing_shard_is_noticed(prepare: Main, photos: Path) -> None:
    assert prepare(["photos", "table", "--rows-per-shard", "25"]) == 0
    Path("table/train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00003\.parquet is missing"):
        load_images(ParquetConfig(path=Path("table"), size=6))
