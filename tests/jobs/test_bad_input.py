"""Bad input to the jobs: one line that names what is at fault and what would be right, before training starts."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from proxscore import job as job_module

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main, Trained


@pytest.fixture
def refused(train: Main, small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    """Start the job with more overrides: it must refuse and leave nothing; returns the line without "error: "."""

    def start(*overrides: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert train([*small, *overrides]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return error.removeprefix("error: ").rstrip("\n")

    return start


@pytest.mark.parametrize(
    ("override", "key", "right"),
    [
        ("training.epoch=3", "training.epoch", "epochs"),
        ("method.pairred=true", "method.pairred", "paired"),
        ("method.penalty.precison=3", "method.penalty.precison", "precision"),
        ("task.data.split_sed=3", "task.data.split_sed", "split_seed"),
        ("trainig.epochs=3", "trainig", "training"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_valid_one(refused, override: str, key: str, right: str) -> None:  # type: ignore[no-untyped-def]
    line = refused(override)
    assert f"unknown key {key!r}" in line
    assert f"did you mean {right!r}?" in line


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["method.penalty.mean=2"], "penalty.mean is 2, the weight of metric=posterior, and metric is adaptive"),
        (["method.metric=posterior", "method.square_decay=0.9"], "square_decay is 0.9, of metric=adaptive"),
        (
            ["method.initial_noise=0.1", "method.initial_precision=0.2"],
            "initial_noise is 0.1 and initial_precision is 0.2: both say how wide",
        ),
    ],
)
def test_settings_that_others_leave_without_effect_are_refused(refused, overrides: list[str], line: str) -> None:  # type: ignore[no-untyped-def]
    said = refused("method.initial_noise=null", *overrides)
    assert "method" in said
    assert line in said


def test_an_unknown_key_that_is_near_to_none_is_answered_with_the_valid_ones(refused) -> None:  # type: ignore[no-untyped-def]
    line = refused("training.xyz=3")
    assert "unknown key 'training.xyz'" in line
    for key in ("epochs", "batch_size", "workers"):
        assert key in line


@pytest.mark.parametrize(
    ("override", "key", "value", "right"),
    [
        ("training.epochs=three", "training.epochs", "'three'", "number"),
        ("training.workers=-1", "training.workers", "-1", "greater than or equal to 0"),
        ("training.workers=1.5", "training.workers", "1.5", "integer"),
        ("training.accumulate=20000", "training.accumulate", "20000", "batch_size="),
        ("training.compile=perhaps", "training.compile", "'perhaps'", "boolean"),
        ("training.precision=fp8", "training.precision", "'fp8'", "'fp32' or 'bf16'"),
        ("method.momentum=1", "method.momentum", "1", "less than 1"),
        ("method.kind=vi", "method.kind", "'vi'", "'proximal_score', 'adamw'"),
        ("task.model.kwargs=4", "task.model.kwargs", "4", "dictionary"),
        ("name=a/b", "name", "'a/b'", "pattern"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_what_would_be_right(  # type: ignore[no-untyped-def]
    refused, override: str, key: str, value: str, right: str
) -> None:
    line = refused(override)
    assert f"{key} is {value}" in line
    assert right in line


def test_an_override_without_a_value_and_a_configuration_that_is_none_are_refused(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert "write key=value" in refused("training.epochs")
    assert "'seed' is a value, not a section" in refused("seed=1", "seed.epochs=3")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "broken.yaml").write_text("training: {epochs: 3")
    assert "missing.yaml: No such file" in refused("--config", "missing.yaml")
    assert "list.yaml: expected keys and values, got a list" in refused("--config", "list.yaml")
    assert "broken.yaml: not valid YAML" in refused("--config", "broken.yaml")


def test_a_model_that_timm_does_not_know_is_answered_with_the_nearest_names(refused) -> None:  # type: ignore[no-untyped-def]
    line = refused("task.model.name=resnet19", "task.model.kwargs={}")
    assert "'resnet19'" in line
    assert "resnet18" in line


def test_a_keyword_that_the_model_refuses_and_images_that_it_cannot_take_are_named(refused) -> None:  # type: ignore[no-untyped-def]
    assert "widht" in refused("task.model.kwargs={widht: 3}")
    line = refused("task.model.name=vit_tiny_patch16_224", "task.model.kwargs={}")
    assert "cannot take 1x8x8 images" in line


@pytest.mark.parametrize("kind", ["idx", "image_folder", "parquet"])
def test_a_data_set_that_is_not_there_is_named(refused, kind: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    line = refused(
        f"task.data.kind={kind}", "task.data.path=nowhere", *(["task.data.classes=2"] if kind == "parquet" else [])
    )
    assert f"task.data.path {tmp_path / 'nowhere'}: no such" in line


def test_an_unreadable_image_is_named(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(tmp_path / "data" / label / f"{number}.png")
    (tmp_path / "data" / "b" / "7.png").write_bytes(b"no image")
    line = refused("task.data.kind=image_folder", "task.data.path=data", "task.data.size=8", "task.data.channels=1")
    assert line.startswith(f"{tmp_path / 'data' / 'b' / '7.png'}: not a readable image")


def test_labels_outside_the_class_range_are_named_with_file_and_row(refused, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "data").mkdir()
    labels = np.arange(50, dtype=np.uint8) % 3
    images = struct.pack(">4i", 0x0803, 50, 8, 8) + bytes(50 * 64)
    (tmp_path / "data" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (tmp_path / "data" / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x0801, 50) + labels.tobytes())
    line = refused("task.data.kind=idx", "task.data.path=data", "task.data.classes=2")
    assert line == f"{tmp_path}/data/train-labels-idx1-ubyte, row 2: label 2 is outside 0..1"


def test_more_training_images_than_there_are_is_refused(refused) -> None:  # type: ignore[no-untyped-def]
    assert "task.data.limit is 99999; there are " in refused("task.data.limit=99999")


@pytest.mark.usefixtures("ray_local")
def test_more_workers_than_the_cluster_can_place_is_refused(refused) -> None:  # type: ignore[no-untyped-def]
    line = refused("training.workers=99")
    assert line.startswith("training.workers=99 at 1 CPUs each need 99 CPUs; the cluster can have 4")


def test_a_result_file_in_a_folder_that_is_not_there_is_refused_before_training(refused) -> None:  # type: ignore[no-untyped-def]
    assert refused("--result", "nowhere/result.json").startswith(
        "--result nowhere/result.json: the folder nowhere does not"
    )


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("task.model.kwargs={width: 8, hidden: 8}", "task.model.kwargs.width=4, now it is 8"),
        ("task.model.name=resnet18", "task.model.name=small_cnn, now it is resnet18"),
        ("method.prior.scale=0.5", "method.prior.scale="),
        ("training.batch_size=25", "training.batch_size=50, now it is 25"),
    ],
)
def test_a_name_that_was_used_with_another_architecture_or_settings_is_refused(
    train: Main,
    trained: Trained,
    override: str,
    key: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(trained.folder)
    overrides = [*trained.overrides, *(["task.model.kwargs={}"] if "resnet" in override else []), override]
    assert train(overrides) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run 'small' in ")
    assert f"was started with {key}" in error
    assert error.count("\n") == 1


def test_a_process_of_its_own_exits_with_2_and_one_line(small: list[str], repository: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "jobs" / "train.py"), *small, "training.epoch=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stdout == "train      reading the defaults\n"
    assert done.stderr == "error: command line: unknown key 'training.epoch'; did you mean 'epochs'?\n"


# ------------------------------------------------------------ every job, every exit


def folder_of_images(folder: Path, count: int = 8) -> Path:
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(folder / label / f"{number}.png")
    return folder


def configuration(content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "c.yaml").write_bytes(content)
        return ["--config", "c.yaml"]

    return make


def images(change: Callable[[Path], object], *overrides: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        change(folder_of_images(folder / "images"))
        data = ["task.data.kind=image_folder", "task.data.path=images", "task.data.size=8", "task.data.channels=1"]
        return [*data, "task.data.limit=null", *overrides]

    return make


def rows(columns: dict[str, object], *overrides: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        pq.write_table(pa.table(columns), folder / "rows.parquet")
        data = ["task.data.kind=parquet", "task.data.path=rows.parquet", "task.data.classes=2", "task.data.size=8"]
        return [*data, "task.data.limit=null", *overrides]

    return make


def table(text: str, *overrides: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "table.csv").write_text(text)
        task = (
            "{kind: forecasting, horizon: 4, context: 8, data: {kind: table, path: table.csv}, model: {name: DLinear}}"
        )
        return [f"task={task}", *overrides]

    return make


def hours(count: int) -> str:
    return "timestamp,target\n" + "".join(f"2024-01-{1 + n // 24:02d} {n % 24:02d}:00,{n}\n" for n in range(count))


def plain(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(arguments)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def big(path: Path) -> None:
    Image.new("1", (9000, 9000)).save(path)


#: Name -> how the job is started, and what its line says.
BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "a binary file": (configuration(bytes(range(256))), "c.yaml: not UTF-8 text"),
    "Latin-1": (configuration("name: caf\xe9\n".encode("latin-1")), "c.yaml: not UTF-8 text (byte 9)"),
    "UTF-16": (configuration("seed: 1\n".encode("utf-16")), "c.yaml: not UTF-8 text"),
    "a null character": (configuration(b"name: a\0b\n"), "c.yaml: not valid YAML"),
    "a tab": (configuration(b"seed: 1\n\tname: x\n"), "c.yaml: not valid YAML"),
    "two documents": (configuration(b"seed: 1\n---\nseed: 2\n"), "c.yaml: not valid YAML"),
    "a key twice": (configuration(b"seed: 1\nseed: 2\n"), "'seed' is given twice"),
    "a list for a section": (configuration(b"evaluation: [1]\n"), "evaluation is [1]"),
    "a text for a section": (configuration(b"tracking: here\n"), "tracking is 'here'"),
    "null for a section": (configuration(b"evaluation: null\n"), "evaluation is None"),
    "a number for a key": (configuration(b"1: 2\n"), "keys are names"),
    "an endless alias": (configuration(b"task: &t {model: *t}\n"), "aliases stand for more than"),
    "python in YAML": (configuration(b"seed: !!python/name:os.system\n"), "c.yaml: not valid YAML"),
    "a date for a name": (configuration(b"name: 2024-01-01\n"), "a date is no setting"),
    "a folder for a file": (plain("--config", "."), "configuration file .: is a folder"),
    "a device for a file": (plain("--config", "/dev/zero"), "/dev/zero: is a device"),
    "infinite epochs": (plain("training.epochs=.inf"), "training.epochs is inf: numbers must be finite"),
    "nan for a scale": (plain("method.prior.scale=.nan"), "method.prior.scale is nan: numbers must be finite"),
    "a prior that never enters": (
        plain("training.epochs=2", "method.prior_warmup=2"),
        "method: prior_warmup is 2 epochs, 8 steps of a run of 8",
    ),
    "a word for a scale": (plain("method.prior.scale=fanin"), "method.prior.scale is 'fanin'"),
    "inf in a list": (plain("method.penalty.mean_schedule.multipliers=[1, .inf]"), "multipliers.1 is inf"),
    "inf for a keyword": (plain("task.model.kwargs={width: .inf}"), "task.model.kwargs.width is inf"),
    "very many epochs": (plain("training.epochs=1e15"), "training.epochs is 1"),
    "a seed of 100 bits": (plain(f"seed={2**100}"), "more than 64 bits"),
    "a keyword of 100 bits": (plain(f"task.model.kwargs={{width: {2**100}}}"), "more than 64 bits"),
    "a text for a keyword": (plain("task.model.kwargs={width: wide}"), "task.model small_cnn with width=wide"),
    "a negative keyword": (plain("task.model.kwargs={width: -4}"), "task.model small_cnn with width=-4"),
    "a network of terabytes": (plain("task.model.kwargs={width: 100000}"), "GiB of memory are free"),
    "a network of many gigabytes": (plain("task.model.kwargs={hidden: 2000000000}"), "GiB of memory are free"),
    "no keyword's name": (plain("task.model.kwargs={1: 2}"), "keys are names"),
    "an empty name of a network": (plain("task.model.name=''"), "task.model.name is ''"),
    "a path as a network": (plain("task.model.name=../x", "task.model.kwargs={}"), "task.model.name is '../x'"),
    "std of zero": (plain("task.data.std=0"), "task.data.std is 0.0"),
    "two means for one channel": (plain("task.data.mean=[0.1, 0.2]"), "task.data.mean has 2 values"),
    "fractions of everything": (
        plain("task.data.test_fraction=0.6", "task.data.validation_fraction=0.5"),
        "leave none to train",
    ),
    "a path that is too long": (plain("task.data.kind=idx", f"task.data.path={'x' * 300}"), "more than 255 bytes"),
    "storage in a device": (plain("training.storage=/dev/null/runs"), "training.storage /dev/null/runs"),
    "storage of a strange kind": (plain("training.storage=nowhere://x"), "training.storage nowhere://x"),
    "a malformed storage": (plain("training.storage='http://[::1'"), "training.storage http://[::1"),
    "a malformed server": (plain("tracking.uri='http://[::1'"), "tracking.uri http://[::1"),
    "a server of a strange kind": (plain("tracking.uri=nowhere://x"), "tracking.uri nowhere://x"),
    "a result that is a folder": (plain("--result", "."), "--result .: is a folder"),
    "a result in a file": (plain("--result", "/dev/null/x.json"), "--result /dev/null/x.json"),
    "a result whose name is too long": (plain("--result", "x" * 300), "cannot be written: File name too long"),
    "an empty image": (images(lambda at: (at / "a" / "3.png").write_bytes(b"")), "a/3.png: not a readable image"),
    "PostScript": (
        images(lambda at: (at / "a" / "3.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")),
        "a/3.png: not a readable",
    ),
    "a pipe among images": (images(lambda at: pipe(at / "b" / "p.png")), "b/p.png: is a pipe"),
    "a device among images": (images(lambda at: (at / "b" / "z.png").symlink_to("/dev/zero")), "b/z.png: is a device"),
    "a link to nowhere": (images(lambda at: (at / "b" / "z.png").symlink_to(at / "none")), "b/z.png: cannot be read"),
    "an image of 81 million pixels": (
        images(lambda at: big(at / "a" / "big.png")),
        "a/big.png: not a readable image: 9000x9000",
    ),
    "one class": (images(lambda at: shutil.rmtree(at / "b")), "1 class folders; expected at least two"),
    "a fraction as a label": (
        rows({"image": [b"x"] * 9, "label": [0.5] * 9}),
        "needs a class for each image; the data hold numbers",
    ),
    "one text as all labels": (
        rows({"image": [b"x"] * 9, "label": ["a"] * 9}),
        "has 1 classes; task.data.classes is 2",
    ),
    "numbers as images": (rows({"image": [1.5] * 9, "label": [0] * 9}), "expected encoded images"),
    "no image column": (rows({"label": [0] * 9}), "no column 'image'"),
    "a label of null": (rows({"image": [b"x"] * 9, "label": [0, None] + [1] * 7}), "row 1: the label is null"),
    "no rows": (rows({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), "have no rows"),
    "no Parquet file": (
        lambda folder: _text(folder, "rows.parquet", "kind=parquet", "classes=2"),
        "not a readable Parquet file",
    ),
    "no IDX file": (
        lambda folder: _text(folder, "train-images-idx3-ubyte", "kind=idx", place="."),
        "neither train-labels",
    ),
    "weights of text": (lambda folder: [*_weights(folder, b"no weights")], "task.model.weights"),
    "weights that are a folder": (plain("task.model.weights=."), "task.model.weights"),
    "an empty table": (table("timestamp,target\n"), "table.csv: the table has no rows"),
    "a table of text": (
        table("timestamp,target\n2024-01-01,many\n2024-01-02,few\n"),
        "target is 'many', which is text",
    ),
    "a table without times": (table("timestamp,target\nsoon,1\nlater,2\n"), "table.csv, row 0"),
    "a table that is too short": (table(hours(6)), "series 'target' has 6 steps"),
    "a section for columns": (table(hours(90), "task.data.id_columns={a: b}"), "task.data.id_columns is {'a': 'b'}"),
    "a frequency that is none": (table(hours(90), "task.data.frequency=often"), "task.data.frequency"),
    "a horizon of one": (table(hours(90), "task.horizon=1"), "task.horizon is 1"),
    "a forecaster's unknown keyword": (table(hours(90), "task.model.kwargs={wide: 3}"), "task.model.kwargs.wide"),
}


def _text(folder: Path, name: str, *settings: str, place: str | None = None) -> list[str]:
    (folder / name).write_text("no such file")
    return [f"task.data={{path: {place or name}, {', '.join(text.replace('=', ': ') for text in settings)}}}"]


def _weights(folder: Path, content: bytes) -> list[str]:
    (folder / "w.safetensors").write_bytes(content)
    return ["task.model.weights=w.safetensors"]


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_that_names_it(
    kind: str, train: Main, small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make, expected = BAD[kind]
    arguments = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert train([*small, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert "Traceback" not in error
    assert len(error) < 1000
    assert sorted(tmp_path.rglob("*")) == before


JOBS: dict[str, tuple[str, list[str], str]] = {
    "no configuration": ("tune", ["--config", "none.yaml"], "none.yaml: No such file"),
    "a sweep of infinite time": ("tune", ["tune.time_limit=.inf"], "time_limit is inf"),
    "a sweep that is a list": ("tune", ["tune=[1]"], "tune is [1]"),
    "a space that is a text": ("tune", ["tune.space=all"], "space is 'all'"),
    "a seed below 0": ("tune", ["tune.seeds=[-1]"], "seeds.0 is -1"),
    "a comparison that is not there": ("compare", ["--config", "none.yaml"], "none.yaml: No such file"),
    "a comparison in a device": ("compare", ["--config", "/dev/zero"], "/dev/zero: is a device"),
    "no posterior": ("evaluate", ["nowhere"], "nowhere: no posterior there"),
    "no posterior to forecast with": ("forecast", ["nowhere"], "nowhere: no posterior there"),
    "scores into a file": (
        "evaluate",
        ["nowhere", "--output", "/dev/null"],
        "--output /dev/null: /dev/null is no folder",
    ),
    "scores below a file": (
        "evaluate",
        ["nowhere", "--output", "/dev/null/x"],
        "--output /dev/null/x: /dev/null is no folder",
    ),
    "scores below a long name": (
        "evaluate",
        ["nowhere", "--output", "x" * 300],
        "cannot be written: File name too long",
    ),
    "forecasts into a folder": ("forecast", ["nowhere", "--output", "."], "--output .: give a name that ends in"),
    "forecasts nowhere": (
        "forecast",
        ["nowhere", "--output", "a/b.csv"],
        "--output a/b.csv: the folder a does not exist",
    ),
    "a quantile of nan": ("forecast", ["nowhere", "--quantiles", "nan"], "--quantiles: nan is not between 0 and 1"),
    "very many draws": ("evaluate", ["nowhere", "--draws", "1000000000000"], "--draws is 1000000000000"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", JOBS)
def test_bad_input_of_other_jobs_is_one_line_that_names_it(
    kind: str, job: Callable[[str], Main], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, arguments, expected = JOBS[kind]
    assert job(name)(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "tune", "compare", "evaluate", "forecast"])
def test_whatever_is_raised_is_one_line_that_names_a_log_with_the_traceback(
    name: str,
    job: Callable[[str], Main],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    main = job(name)
    inner = {"train": "_work", "evaluate": "_work", "forecast": "_work", "tune": "tune", "compare": "compare"}[name]

    def broken(*arguments: object, **named: object) -> int:
        raise KeyError("a key\nwith sqlite://user:secret@host/x")

    monkeypatch.setitem(main.__globals__, inner, broken)  # type: ignore[attr-defined]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    arguments = {"evaluate": ["x"], "forecast": ["x"], "compare": ["--config", "x"]}.get(name, [])
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: KeyError: ")
    assert error.count("\n") == 1
    assert "secret" not in error
    log = Path(error.rstrip("\n").rpartition("traceback: ")[2])
    assert log.parent == tmp_path
    assert "in broken" in log.read_text()
    assert "secret" not in log.read_text()


def test_an_interruption_and_a_reader_that_has_gone_have_their_own_exits(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    def unheard() -> int:
        raise BrokenPipeError

    assert job_module.run(interrupted, "train", interrupted="it is so") == 130
    assert capsys.readouterr().err == "interrupted: it is so\n"
    assert job_module.run(unheard, "train") == 2
    assert capsys.readouterr().err == ""
    assert job_module.run(lambda: 1, "train") == 1


def test_processes_end_with_one_line_also_on_bytes_that_are_no_text(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe")
    for arguments in ([b"name=\xff"], [b"--config", b"c.yaml"]):
        script = str(repository / "jobs" / "train.py")
        done = subprocess.run([sys.executable, script, *arguments], cwd=tmp_path, capture_output=True, timeout=200)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: ")
        assert done.stderr.count(b"\n") == 1


def test_what_a_job_printed_goes_to_a_reader_that_stops_early(repository: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} {repository / 'jobs' / 'train.py'} --print-config | head -1"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, shell=True, timeout=200)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
