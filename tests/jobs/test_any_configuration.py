"""Any value of any setting gives a job that may begin, or one line: over the whole tree of the configuration."""

from __future__ import annotations

import datetime
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic.fields import FieldInfo

from proxscore import config as configuration
from proxscore.config import ConfigError, Registry, Section
from proxscore.config.root import Config
from proxscore.experiments.comparison import settings as comparison_settings
from proxscore.experiments.comparison.plan import plan as comparison_plan
from proxscore.experiments.sweep import settings as tuning_settings
from proxscore.experiments.sweep.plan import plan as tuning_plan
from proxscore.training import launch
from proxscore.training.run_memory import RunMemory

Path_ = tuple[str, ...]
Place = tuple[Path_, dict[Path_, str]]  # of a setting: its key, and the kinds of the sections above it

NUMBERS = [0, 1, -1, 2, 3, 0.5, 1e-300, 5e-324, -0.0, 1e308, -1e308, float("nan"), float("inf"), float("-inf")]
HUGE = [2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 10**12, 10**15, 10**30, 10**400]
TEXTS = [
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "~",
        "-",
        "null",
        "1e3",
        "nan",
        "inf",
        "${HOME}",
        "{}",
        "a\nb",
        "a\0b",
        "\ud800",
        "💥",
        "é" * 200,
    ),
    *(
        "x" * 300,
        "x" * 5000,
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "../elsewhere",
        "a/b",
        "a?b#c%d e",
        "*",
        "[",
        "(",
        "\\",
    ),
    *(
        "s3://",
        "s3:///",
        "gs://",
        "file://",
        "file:///",
        "memory://x",
        "http://[::1",
        "://",
        "nowhere://x/y",
        "http://",
    ),
    *(
        "sqlite://",
        "sqlite:///",
        "sqlite:////dev/null/x.db",
        "postgresql://",
        "databricks",
        "uc:x",
        "Adam",
        "SGD",
        "head.*",
    ),
]
OTHERS: list[Any] = [
    *(
        None,
        True,
        False,
        [],
        [None],
        [[[]]],
        [0.5],
        [1, 2, 3],
        ["a"],
        {},
        {"kind": "x"},
        {"kind": None},
        {"a": 1},
        {"": {}},
    ),
    *(
        {1: 2},
        {"a": {"b": {"c": [1, {"d": "e"}]}}},
        {"kind": ["adamw"]},
        b"bytes",
        {1, 2},
        datetime.date(2020, 1, 1),
        Path("x"),
    ),
]
VALUES = st.one_of(st.sampled_from(values) for values in (NUMBERS, HUGE, TEXTS, OTHERS)) | st.one_of(
    *(st.integers(), st.floats(), st.text(max_size=20), st.lists(st.floats() | st.text(max_size=3), max_size=3)),
    st.dictionaries(st.text(max_size=5), st.none() | st.floats() | st.text(max_size=3), max_size=2),
)


def places(root: type[Section], path: Path_ = (), kinds: dict[Path_, str] | None = None) -> Iterator[Place]:
    """Every setting of a tree, under every kind of every section."""
    kinds = kinds or {}
    for name, field in root.model_fields.items():
        yield (*path, name), kinds
        for section in found(field):
            if len(path) > 4:  # a section within itself
                continue
            kind = section.model_fields.get("kind")
            own = {} if kind is None else {(*path, name): get_args(kind.annotation)[0]}
            yield from places(section, (*path, name), kinds | own)


def found(field: FieldInfo) -> list[type[Section]]:
    """The sections that a field may hold."""
    for inner in field.metadata:
        if isinstance(inner, Registry):
            return [inner.section(kind) for kind in inner.kinds()]
    return _found(field.annotation)


def _found(annotation: Any) -> list[type[Section]]:
    for inner in getattr(annotation, "__metadata__", ()):
        if isinstance(inner, Registry):
            return [inner.section(kind) for kind in inner.kinds()]
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (dict, list):
        return []
    return [section for inner in get_args(annotation) for section in _found(inner)]


def changed(tree: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """A tree with one value, and the kinds of the sections that lead there."""
    path, kinds = place
    for section, kind in sorted(kinds.items(), key=lambda item: len(item[0])):
        inner: Any = tree
        for key in section:
            inner = inner.get(key, {}) if isinstance(inner, dict) else {}
        if inner.get("kind") != kind:
            tree = configuration.with_value(tree, ".".join(section), DATA.get(kind, {}) | {"kind": kind})
    return configuration.with_value(tree, ".".join(path), value)


DATA: dict[str, dict[str, Any]] = {
    "idx": {"path": "idx"},
    "image_folder": {"path": "folder", "size": 8, "channels": 1},
    "parquet": {"path": "rows.parquet", "size": 8, "channels": 1, "classes": 2},
    "torchvision": {"name": "cifar10", "path": "official"},
    "table": {"path": "table.csv"},
    "recipe": {"name": "ILI", "path": "ili"},
    "vision": {
        "model": {"name": "small_cnn", "kwargs": {"width": 2, "hidden": 2}},
        "data": {"kind": "digits", "limit": 50},
    },
    "forecasting": {
        **{"horizon": 4, "context": 8, "model": {"name": "SimpleFeedForward", "kwargs": {"hidden_dimensions": [4]}}},
        "data": {"kind": "table", "path": "table.csv"},
    },
}
BASE = {
    "name": "x",
    "task": {"kind": "vision"} | DATA["vision"],
    "training": {"workers": 0, "device": "cpu", "epochs": 2, "batch_size": 25},
    "tracking": {"uri": "sqlite:///never-made.db"},
}


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small data of every kind, in the working directory."""
    folder = tmp_path_factory.mktemp("outside") / "inside"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    encoded = []
    for number, image in enumerate(pixels):
        file = folder / "folder" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        encoded.append(file.read_bytes())
    pq.write_table(pa.table({"image": encoded, "label": [i % 2 for i in range(40)]}), folder / "rows.parquet")
    (folder / "idx").mkdir()
    (folder / "idx" / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">4i", 0x0803, *pixels.shape) + pixels.tobytes()
    )
    labels = struct.pack(">2i", 0x0801, 40) + bytes(i % 2 for i in range(40))
    (folder / "idx" / "train-labels-idx1-ubyte").write_bytes(labels)
    official = folder / "official" / "cifar-10-batches-bin"
    official.mkdir(parents=True)
    (official / "batches.meta.txt").write_text("\n".join(f"thing {number}" for number in range(10)))
    for file in ("test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        rows = np.random.default_rng(0).integers(0, 256, (20, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(20) % 10
        (official / f"{file}.bin").write_bytes(rows.tobytes())
    stamps = pd.date_range("2024-01-01", periods=200, freq="h")
    pd.DataFrame({"timestamp": stamps, "target": np.sin(np.arange(200) / 4)}).to_csv(folder / "table.csv", index=False)
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def begins(tree: dict[str, Any]) -> None:
    """Everything before the cluster, up to the folder of the run; or a line."""
    with lines_alone():
        config = launch.with_absolute_paths(configuration.parse(tree))
        launch.check_job(config)
        RunMemory(config.training.storage, "label")


@contextmanager
def lines_alone() -> Iterator[None]:
    """Nothing is raised within, or a ConfigError of one line that can be shown."""
    line = None
    try:
        yield
    except ConfigError as error:
        line = str(error)
    if line is not None:
        assert line
        assert "\n" not in line
        assert len(line) < 2000


def test_the_tree_as_it_is_begins() -> None:
    for kind in ("vision", "forecasting"):
        config = launch.with_absolute_paths(configuration.parse(BASE | {"task": {"kind": kind} | DATA[kind]}))
        launch.check_job(config)


ALL = sorted(places(Config), key=str)
QUICK = [place for place in ALL if place[1].get(("task",)) != "forecasting"]
SLOW = [place for place in ALL if place[1].get(("task",)) == "forecasting"]
every = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(every, max_examples=300)
@given(st.sampled_from(QUICK), VALUES)
def test_any_value_of_any_setting_gives_a_job_or_a_line(place: Place, value: Any) -> None:
    begins(changed(BASE, place, value))


@settings(every, max_examples=60)
@given(st.sampled_from(SLOW), VALUES)
def test_any_value_of_any_setting_of_forecasts_gives_a_job_or_a_line(place: Place, value: Any) -> None:
    begins(changed(BASE | {"task": {"kind": "forecasting"} | DATA["forecasting"]}, place, value))


@pytest.mark.slow
@settings(every, max_examples=6000)
@given(st.sampled_from(ALL), VALUES)
def test_very_many_values_of_all_settings(place: Place, value: Any) -> None:
    begins(changed(BASE, place, value))


@settings(every, max_examples=100)
@given(st.sampled_from(sorted(places(tuning_settings.TuneConfig), key=str)), VALUES)
def test_any_value_of_a_sweep_gives_a_plan_or_a_line(place: Place, value: Any) -> None:
    tree = configuration.dump_yaml(BASE | {"training": BASE["training"] | {"workers": 1}})  # type: ignore[operator]
    Path("sweep.yaml").write_text(tree)
    base, _ = configuration.read("sweep.yaml")
    with lines_alone():
        tuning_plan(*tuning_settings.of(base | {"tune": changed({}, place, value)}, "sweep.yaml"))


@settings(every, max_examples=100)
@given(st.sampled_from(sorted(places(comparison_settings.ComparisonConfig), key=str)), VALUES)
def test_any_value_of_a_comparison_gives_a_plan_or_a_line(place: Place, value: Any) -> None:
    base = {"task": BASE["task"], "training": {"device": "cpu", "batch_size": 25}, "tracking": BASE["tracking"]}
    tree = {"methods": {"A": {"method": {"kind": "adamw"}}}, "budget": 2, "base": base}
    with lines_alone():
        comparison_plan(*comparison_settings.of(changed(tree, place, value), "comparison.yaml"))
