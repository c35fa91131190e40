"""Labels of Parquet files in the forms that others write: texts, ClassLabels, lists of these; and images beside the table."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.preprocessing import MultiLabelBinarizer

from proxscore.config import ConfigError
from proxscore.vision.data import load_images
from proxscore.vision.sources.parquet import ParquetConfig, load
from proxscore.vision.task import VisionConfig

NAMES = ("wasp", "ant", "bee")  # not sorted: their order is that of the numbers
LISTS = [[0], [1, 2], [], [2, 0], [1], [0, 1, 2]]


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, labels: Any, names: tuple[str, ...] | None = None, images: Any = None) -> ParquetConfig:
    """A table as Hugging Face's ``datasets`` writes one; its metadata is that of version 5.2."""
    images = images or [{"bytes": encoded(row), "path": None} for row in range(len(labels))]
    table = pa.table(
        {"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), "label": labels}
    )
    if names is not None:
        label: dict[str, Any] = {"names": list(names), "_type": "ClassLabel"}
        if pa.types.is_list(table.schema.field("label").type):
            label = {"feature": label, "_type": "List"}
        features = {"image": {"_type": "Image"}, "label": label}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)
    return ParquetConfig(path=path, size=4, channels=1)


def test_integers_are_named_by_the_schema(tmp_path: Path) -> None:
    data = load_images(write(tmp_path / "a.parquet", [row % 3 for row in range(30)], NAMES))
    assert data.classes == NAMES
    np.testing.assert_array_equal(data.test.labels.numpy(), data.test.rows % 3)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_texts_are_numbered_in_the_order_of_the_alphabet(kind: Any, tmp_path: Path) -> None:
    texts = [NAMES[row % 3] for row in range(30)]
    data = load_images(write(tmp_path / "a.parquet", pa.array(texts).cast(kind)))
    assert data.classes == ("ant", "bee", "wasp")
    for part in (data.train, data.validation, data.test):
        assert [data.classes[label] for label in part.labels] == [texts[row] for row in part.rows]


def test_an_image_without_bytes_is_the_file_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for row in range(30):
        (tmp_path / "images" / f"{row}.png").write_bytes(encoded(row))
    images = [{"bytes": None if row % 2 else encoded(row), "path": f"images/{row}.png"} for row in range(30)]
    config = write(tmp_path / "a.parquet", [row % 3 for row in range(30)], NAMES, images)
    data, same = load_images(config), load_images(write(tmp_path / "b.parquet", [row % 3 for row in range(30)], NAMES))
    for part in ("train", "test"):
        rows = range(len(getattr(data, part)))
        assert getattr(data, part).__getitems__(rows)[0].equal(getattr(same, part).__getitems__(rows)[0])
    (tmp_path / "images" / "7.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"a\.parquet, row 7, images/7\.png: not a readable image"):
        [part.__getitems__(range(len(part))) for part in (data.train, data.validation, data.test)]


@pytest.mark.parametrize("texts", [False, True])
def test_lists_are_a_matrix_for_a_task_of_many_labels_and_refused_by_one_of_a_single_one(
    texts: bool, tmp_path: Path
) -> None:
    labels = [[NAMES[label] for label in own] for own in LISTS] if texts else LISTS
    config = write(tmp_path / "a.parquet", labels, None if texts else NAMES)
    source = load(config)
    assert source.targets == "labels"
    names = tuple(sorted(NAMES)) if texts else NAMES
    expected = MultiLabelBinarizer(classes=names if texts else [0, 1, 2]).fit_transform(labels)
    assert source.classes == names
    np.testing.assert_array_equal(source.pools["train"].labels, expected)
    with pytest.raises(
        ConfigError, match=r"needs a class for each image; the data hold a list of labels for each image"
    ):
        VisionConfig(data=config).build()
    with pytest.raises(ConfigError, match=r"column 'label' is list<.*>, which are labels"):
        load(config.model_copy(update={"targets": "classes"}))


@pytest.mark.parametrize(
    ("labels", "names", "settings", "message"),
    [
        ([0, 1, 2], None, {}, "labels are integers without names: set task.data.classes"),
        ([0, 1, 3], NAMES, {}, "a.parquet, row 2: label 3 is outside 0..2"),
        ([0, 1, -1], NAMES, {}, "a.parquet, row 2: label -1 is outside 0..2"),
        ([0, 1, 2], NAMES, {"classes": 4}, "a.parquet: has 3 classes; task.data.classes is 4: leave it out"),
        ([0, 1, 2], ("a", "b", "a"), {}, "a.parquet: two classes are named 'a'"),
        (["a", None, "b"], None, {}, "a.parquet, row 1: the label is null; expected the name of a class"),
        (["a", "a", "a"], None, {}, "a.parquet: has 1 classes; expected 2 to 1,000,000"),
        ([0.5, 1.0, 2.0], None, {"targets": "classes"}, "column 'label' is double, which are values"),
        ([0.5, None, 2.0], None, {}, "a.parquet, row 1: label is null; a number is needed"),
        ([0.5, 1.0, float("inf")], None, {}, "a.parquet, row 2: label is [inf]; finite numbers are needed"),
        ([[0.5], [1.0, 2.0], [1.0]], None, {}, "a.parquet, row 1: label has 2 numbers; expected 1"),
        (["a", "b", "c"], None, {"targets": "values"}, "column 'label' is string, which are classes"),
    ],
)
def test_labels_at_fault_are_named(
    labels: list[Any], names: tuple[str, ...] | None, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = write(tmp_path / "a.parquet", labels, names).model_copy(update=settings)
    with pytest.raises(ConfigError) as refusal:
        load(config)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("labels", "settings", "expected", "names"),
    [
        ([0.5, 1.5, 2.5], {}, [[0.5], [1.5], [2.5]], ("label",)),
        ([3, 1, 2], {"targets": "values"}, [[3], [1], [2]], ("label",)),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], {}, [[1, 2], [3, 4], [5, 6]], ("label_0", "label_1")),
    ],
)
def test_numbers_are_values(
    labels: list[Any], settings: dict[str, Any], expected: list[list[float]], names: tuple[str, ...], tmp_path: Path
) -> None:
    source = load(write(tmp_path / "a.parquet", labels).model_copy(update=settings))
    assert (source.targets, source.classes) == ("values", names)
    np.testing.assert_array_equal(source.pools["train"].labels, np.array(expected, np.float32))


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    config = write(tmp_path / "train.parquet", [0, 1, 2], NAMES).model_copy(update={"path": tmp_path})
    write(tmp_path / "test.parquet", [0, 1, 2], NAMES[::-1])
    with pytest.raises(ConfigError, match=r"names of classes differ"):
        load(config)
    write(tmp_path / "train.parquet", ["a", "b", "a"])
    with pytest.raises(ConfigError, match=r"labels are (no )?texts, unlike those of"):
        load(config)
    write(tmp_path / "test.parquet", ["a", "c", "a"])
    with pytest.raises(ConfigError, match=r"test\.parquet, row 1: label 'c' is of no class of the training files"):
        load(config)


@pytest.mark.parametrize(
    "metadata", [b"no json", b"[]", b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', b"[" * 100_000]
)
def test_metadata_of_another_form_are_no_names(metadata: bytes, tmp_path: Path) -> None:
    table = pa.table({"image": [encoded(0)] * 3, "label": [0, 1, 2]}).replace_schema_metadata(
        {b"huggingface": metadata}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="labels are integers without names"):
        load(ParquetConfig(path=tmp_path / "a.parquet"))
