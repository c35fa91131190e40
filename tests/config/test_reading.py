"""Configurations as people and machines write them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxscore.config import ConfigError, Registry, Section, dump, dump_yaml, load, parse, read, validated
from proxscore.config.root import Config
from proxscore.config.yaml_text import parse_yaml
from proxscore.experiments.comparison.settings import ComparisonConfig
from proxscore.experiments.sweep.settings import TuneConfig
from proxscore.methods.proximal_score import ProximalScoreConfig


def refusal(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def sections(root: type[Section] = Config) -> Iterator[type[Section]]:
    """Every kind of section in a tree, of a registry all that it holds."""
    seen: list[type[Section]] = []

    def walk(annotation: Any) -> None:
        if isinstance(annotation, Registry):
            for kind in annotation.kinds():
                walk(annotation.section(kind))
        if isinstance(annotation, type) and issubclass(annotation, Section) and annotation not in seen:
            seen.append(annotation)
            for field in annotation.model_fields.values():
                walk(field.annotation)
                for inner in field.metadata:
                    walk(inner)
        for inner in (*get_args(annotation), *getattr(annotation, "__metadata__", ())):
            walk(inner)

    walk(root)
    yield from seen


#: Fields that hold a section of one of several kinds.
CHOICES = [
    (section, name, field)
    for section in sections()
    for name, field in section.model_fields.items()
    if any(isinstance(inner, Registry) for inner in field.metadata)
]


def test_the_tree_has_its_choices_of_kinds() -> None:
    assert {f"{section.__name__}.{name}" for section, name, _ in CHOICES} == {
        *("Config.task", "Config.method", "VisionConfig.data", "ForecastingConfig.data"),
        *("ProximalScoreConfig.family", "ProximalScoreConfig.penalty"),
        *("MCDropoutConfig.of", "LaplaceConfig.of", "EnsembleConfig.of"),
    }


@pytest.mark.parametrize(
    ("section", "name", "field"), CHOICES, ids=lambda value: getattr(value, "__name__", str(value))[:20]
)
def test_a_partial_section_keeps_the_default_kind(section: type[Section], name: str, field: Any) -> None:
    kind = {"kind": get_args(section.model_fields["kind"].annotation)[0]} if "kind" in section.model_fields else {}
    default = field.get_default(call_default_factory=True)
    for key, value in default.model_dump(mode="json").items():
        if key == "kind":
            continue
        got = getattr(section.model_validate(kind | {name: {key: value}}), name)
        assert got == default, key
    assert getattr(section.model_validate(kind | {name: {}}), name) == default


def test_families_of_patterns_are_mean_field_without_a_kind() -> None:
    config = parse({"method": {"families": {"head.*": {}, "body.*": {"kind": "low_rank", "rank": 2}}}})
    assert [family.kind for family in config.method.families.values()] == ["mean_field", "low_rank"]  # type: ignore[union-attr]


def test_a_covariance_of_one_deviation_is_refused() -> None:
    assert "method.rank is 1: input should be greater than or equal to 2" in refusal("method={kind: swag, rank: 1}")


def test_one_value_of_a_section_of_kinds_is_enough() -> None:
    config = load(overrides=["task.data.std=0.25"])
    assert (config.task.data.kind, config.task.data.std) == ("digits", 0.25)  # type: ignore[union-attr]
    assert load(overrides=["task.kind=forecasting", "task.data.season=7"]).task.data.kind == "taylor"
    assert load(overrides=["method={kind: ensemble, of: {lr: 0.5}}"]).method.of.kind == "adamw"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["1e-1", "1E5", "-2e3", "+1.5e-4", ".5e1", "1.e2", "3e+0"])
def test_numbers_with_an_exponent_are_numbers_wherever_they_stand(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"task: {{model: {{kwargs: {{a: {text}, b: [{text}], c: {{d: {text}}}, e: '{text}'}}}}}}\n")
    value = float(text)
    wanted = {"a": value, "b": [value], "c": {"d": value}, "e": text}
    assert load(file).task.model.kwargs == wanted
    assert load(overrides=[f"task.model.kwargs={{a: {text}, b: [{text}], c: {{d: {text}}}, e: '{text}'}}"]) == load(
        file
    )
    assert parse(yaml.safe_load(dump(load(file)).replace("e: ", "e: "))) is not None
    (tmp_path / "again.yaml").write_text(dump(load(file)))
    assert load(tmp_path / "again.yaml") == load(file)


def test_a_name_that_looks_like_a_number_is_a_name_in_quotes(tmp_path: Path) -> None:
    assert load(overrides=['name="2024"']).name == "2024"
    assert load(overrides=["name='1e5'"]).name == "1e5"
    assert refusal("name=2024").endswith(
        "name is 2024: input should be a valid string: a text that looks like a number goes into quotes"
    )
    (tmp_path / "c.yaml").write_text(dump(load(overrides=['name="1e5"'])))
    assert load(tmp_path / "c.yaml").name == "1e5"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_written_is_read_back(tree: Any) -> None:
    assert parse_yaml(dump_yaml(tree)) == tree


def test_an_override_of_an_alias_changes_no_other_place(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("base: {x: &one {a: 1}, y: *one}\n")
    tree, _ = read(file, ["base.x.a=2"])
    assert tree == {"base": {"x": {"a": 2}, "y": {"a": 1}}}


def bomb(levels: int, fan: int, form: str) -> str:
    lines = ["a0: &a0 [x, x]" if form == "list" else "a0: &a0 {k0: x}"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * fan)
        inside = {
            "list": f"[{before}]",
            "mapping": f"{{k: *a{level - 1}, l: *a{level - 1}}}",
            "merge": f"{{<<: [{before}]}}",
        }
        lines.append(f"a{level}: &a{level} {inside[form]}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("form", ["list", "mapping", "merge"])
def test_aliases_that_stand_for_very_many_values_are_refused(form: str, tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    file.write_text(bomb(60, 9, form))
    assert "bomb.yaml: not valid YAML: its aliases stand for more than 100,000 values" in refusal(file=file)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a: &a [*a]\n", "aliases stand for more"),
        (b"a: &a {<<: *a}\n", "aliases stand for more"),
        (b"[" * 50_000, "nested too deeply"),
        (b"task: " + b"{a: " * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
        (b"\xff\xfe\x00\x01", "not UTF-8 text"),
        ("name: caf\xe9\n".encode("latin-1"), "not UTF-8 text (byte 9)"),
        (b"name: \x00\n", "not valid YAML"),
        (b"seed: " + b"9" * 5000, "not valid YAML"),
        (b"name: 2024-99-99\n", "not valid YAML"),
        (b"seed: !!int many\n", "not valid YAML"),
        (b"seed: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
        (b"? [1]\n: 2\n", "not valid YAML"),
        (b"? {a: 1}\n: 2\n", "not valid YAML"),
        (b"seed: 1\nseed: 2\n", "'seed' is given twice"),
        (b"training:\n  epochs: 1\n  epochs: 2\n", "'epochs' is given twice"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"1: 2\n", "keys are names"),
        (b"null: 2\n", "keys are names"),
        (b"seed: !!set {a}\n", "a set is no setting"),
        (b"name: !!binary aGVsbG8=\n", "a bytes is no setting"),
        (b"name: 2024-01-01\n", "a date is no setting"),
        (b'name: "\\uD800"\n', ""),
        (b'task: {data: {kind: idx, path: "a\\0b"}}\n', "belongs in no name or path"),
        (b"#" * 2_000_000, "at most 131,072 are read"),
        (b"- 1\n", "got a list"),
        (b"hello\n", "got a str"),
        (b"seed: 1\n\tname: x\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(content: bytes, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    message = refusal(file=file)
    assert fault in message
    assert str(file) in message


def test_merge_keys_and_own_keys_go_together(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training: &t {epochs: 3, workers: 0}\nx: {<<: *t, epochs: 5}\n")
    assert read(tmp_path / "c.yaml")[0]["x"] == {"epochs": 5, "workers": 0}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load(tmp_path / "c.yaml").seed == 3


def test_pipes_devices_folders_and_files_that_are_away_are_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    started = time.monotonic()
    assert "pipe.yaml: is a pipe; give a regular file" in refusal(file=tmp_path / "pipe.yaml")
    assert "/dev/zero: is a device; give a regular file" in refusal(file=Path("/dev/zero"))
    assert "is a folder" in refusal(file=tmp_path)
    assert "No such file" in refusal(file=tmp_path / "none.yaml")
    assert "File name too long" in refusal(file=tmp_path / ("x" * 300))
    assert "null" in refusal(file=Path("a\0b"))
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400", "inf", "nan", "'inf'"])
@pytest.mark.parametrize(
    "key",
    [
        f"{prefix}.{name}"
        for prefix, section in (
            ("training", Config.model_fields["training"].annotation),
            ("method", ProximalScoreConfig),
        )
        for name, field in section.model_fields.items()  # type: ignore[union-attr]
        if field.annotation is float
    ]
    + ["method.prior.scale", "method.prior.scales.x", "method.penalty.mean_schedule.multipliers.0", "task.data.mean"],
)
def test_no_number_is_infinite_or_none(key: str, value: str) -> None:
    if key.endswith(".0"):
        key, value = key.removesuffix(".0"), f"[{value}]"
    assert key in refusal(f"{key}={value}")


@pytest.mark.parametrize(
    ("root", "tree", "key"),
    [
        (TuneConfig, {"time_limit": float("inf")}, "time_limit"),
        (TuneConfig, {"space": {"method.lr": {"uniform": [0.0, float("inf")]}}}, "space.method.lr.uniform.1"),
        (TuneConfig, {"space": {"method.lr": {"choice": [float("nan")]}}}, "space.method.lr.choice.0"),
        (ComparisonConfig, {"budget": float("nan"), "methods": {}}, "budget"),
        (
            ComparisonConfig,
            {"methods": {"a": {"method": {"kind": "adamw", "lr": float("inf")}}}},
            "methods.a.method.lr",
        ),
        (ComparisonConfig, {"methods": {"a": {"method": {}, "tune": {"lr": [float("inf")]}}}}, "methods.a.tune.lr.0"),
    ],
)
def test_sweeps_and_comparisons_take_none_either(root: type[Section], tree: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match="finite") as caught:
        validated(root, tree, "here")
    assert f"here: {key} is " in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "bound"),
    [
        ("training.epochs=1e15", "training.epochs", "1000000"),
        ("training.batch_size=1e15", "training.batch_size", "10000000"),
        ("training.workers=1e12", "training.workers", "100000"),
        ("evaluation.draws=1e12", "evaluation.draws", "100000"),
        ("evaluation.bins=1e12", "evaluation.bins", "10000"),
        ("task={data: {kind: idx, path: x, classes: 1e11}}", "task.data.classes", "256"),
        ("task={data: {kind: parquet, path: x, classes: 1e11}}", "task.data.classes", "1000000"),
        ("task={data: {kind: image_folder, path: x, size: 1e9}}", "task.data.size", "16384"),
        ("task={kind: forecasting, horizon: 1e12}", "task.horizon", "100000"),
        ("task={kind: forecasting, context: 1e12}", "task.context", "1000000"),
        ("method={kind: swag, rank: 1e12}", "method.rank", "10000"),
        ("method={kind: ensemble, members: 1e12}", "method.members", "1000"),
        ("method={draws: 1e12}", "method.draws", "10000"),
        ("seed=1e18", "seed", "1099511627776"),
    ],
)
def test_what_would_take_all_memory_or_time_is_refused_with_its_bound(override: str, key: str, bound: str) -> None:
    message = refusal(override)
    assert f"{key} is 1" in message
    assert f"less than or equal to {bound}" in message


def test_a_setting_of_several_types_is_named_without_their_names() -> None:
    with pytest.raises(ConfigError, match=r": method\.prior\.scale is 'fanin': .*a valid number.*, or 'fan_in'$"):
        load(overrides=["method.prior.scale=fanin"])
    with pytest.raises(ConfigError, match=r": task\.data\.mean is 'abc': .*a valid number.*, or a valid list$"):
        load(overrides=["task.data.mean=abc"])
    assert isinstance(method := load(overrides=["method.prior.scale=fan_in"]).method, ProximalScoreConfig)
    assert method.prior.scale == "fan_in"
