"""The configuration with comments: every setting has one, and what is printed loads to the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from proxscore import config as configuration
from proxscore.config import (
    FAMILIES,
    IMAGE_SOURCES,
    METHODS,
    PENALTIES,
    SERIES_SOURCES,
    TASKS,
    Config,
    Registry,
    Section,
)
from proxscore.config.commented import comments, dump_commented
from proxscore.config.yaml_text import parse_yaml
from proxscore.experiments.comparison import settings as comparison_settings
from proxscore.experiments.comparison.settings import ComparisonConfig, EntryConfig
from proxscore.experiments.sweep import settings as sweep_settings
from proxscore.experiments.sweep.settings import TuneConfig
from proxscore.experiments.sweep.space import Domain

CONFIGURATIONS = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))
REGISTRIES = (TASKS, METHODS, FAMILIES, PENALTIES, IMAGE_SOURCES, SERIES_SOURCES)


class Plain(Section):
    """Two kinds of comments."""

    beside: int = 1  # what stands beside
    # What stands above,
    # in two lines.
    above: list[Annotated[float, Field(gt=0)]] = Field([])
    none: str = "a"
    chosen: Literal["a", "b"] | None = None  # a choice
    both: bool = False  # within brackets


def kind(path: Path) -> str:
    tree = yaml.safe_load(path.read_text())
    return "compare" if "methods" in tree else "tune" if "tune" in tree else "train"


def sections() -> Iterator[type[Section]]:
    """Every section of the package's that a configuration can hold."""
    roots = [Config, TuneConfig, Domain, EntryConfig, ComparisonConfig]
    roots += [registry.section(kind) for registry in REGISTRIES for kind in registry.built_in]
    seen: set[type[Section]] = set()
    while roots:
        section = roots.pop()
        if section not in seen:
            seen.add(section)
            yield section
            roots += [
                field.annotation
                for field in section.model_fields.values()
                if isinstance(field.annotation, type)
                and issubclass(field.annotation, Section)
                and not any(isinstance(each, Registry) for each in field.metadata)
            ]


def commented(text: str) -> list[str]:
    """The keys of a YAML text beside or above which there is no comment; those of free dictionaries are no settings."""
    lines, found = text.splitlines(), []
    for index, line in enumerate(lines):
        key = line.partition(":")[0].strip()
        if line.lstrip().startswith(("#", "-")) or "#" in line or (index and lines[index - 1].lstrip().startswith("#")):
            continue
        found.append(key)
    return found


def test_comments_are_read_from_beside_and_from_above() -> None:
    assert comments(Plain) == {
        "beside": "what stands beside",
        "above": "What stands above, in two lines",
        "chosen": "a choice",
        "both": "within brackets",
    }
    text = dump_commented(Plain(above=[0.5]))
    assert text.splitlines()[0] == "beside: 1  # what stands beside"
    assert "# What stands above, in two lines\nabove:\n- 0.5\n" in text
    assert "chosen: null  # a choice; or a, b" in text
    assert parse_yaml(text) == Plain(above=[0.5]).model_dump(mode="json")


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_every_setting_has_a_comment(section: type[Section]) -> None:
    of_sections = {
        name
        for name, field in section.model_fields.items()
        if any(isinstance(each, Registry) for each in field.metadata)
        or (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    }  # these have that of the section within
    assert set(section.model_fields) - set(comments(section)) - of_sections == set()


def test_every_key_of_the_default_printout_has_a_comment() -> None:
    assert commented(dump_commented(configuration.load())) == []


@pytest.mark.parametrize("path", [p for p in CONFIGURATIONS if kind(p) == "train"], ids=lambda path: path.stem)
def test_a_training_jobs_configuration_is_read_back_to_the_same(path: Path) -> None:
    config = configuration.load(path)
    text = dump_commented(config)
    assert configuration.parse(parse_yaml(text)) == config
    assert parse_yaml(text) == parse_yaml(configuration.dump(config))
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"method.kind={kind}"] for kind in METHODS.built_in),
        *([f"method.family.kind={kind}", "method.solver={}"] for kind in FAMILIES.built_in),
        *([f"method.penalty.kind={kind}"] for kind in PENALTIES.built_in),
        ["method.families={head: {kind: kronecker}}", "task.model.lora={}", "evaluation.shifts=[blur_3]"],
        ["task.kind=forecasting", "tracking.uri='http://127.0.0.1:5000/#a'", "name=null"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_method_and_family_is_read_back_to_the_same(overrides: list[str]) -> None:
    config = configuration.load(None, overrides)
    assert configuration.parse(parse_yaml(dump_commented(config))) == config


@pytest.mark.parametrize("path", [p for p in CONFIGURATIONS if kind(p) == "tune"], ids=lambda path: path.stem)
def test_a_sweep_is_read_back_to_the_same(path: Path, tmp_path: Path) -> None:
    config, tune = sweep_settings.load(path, [])
    space = tune.space or {"method.lr": Domain(loguniform=[1e-4, 1e-2])}
    (tmp_path / "printed.yaml").write_text(sweep_settings.written(config, tune, space))
    assert sweep_settings.load(tmp_path / "printed.yaml", []) == (config, tune.model_copy(update={"space": space}))


def test_a_population_has_no_space_to_print(tmp_path: Path) -> None:
    config, tune = sweep_settings.of({"tune": {"search": "population"}}, "test")
    (tmp_path / "printed.yaml").write_text(sweep_settings.written(config, tune, {}))
    assert sweep_settings.load(tmp_path / "printed.yaml", []) == (config, tune)


@pytest.mark.parametrize("split_by_seed", [False, True])
@pytest.mark.parametrize("path", [p for p in CONFIGURATIONS if kind(p) == "compare"], ids=lambda path: path.stem)
def test_a_comparison_is_read_back_to_the_same_cells(path: Path, split_by_seed: bool, tmp_path: Path) -> None:
    overrides = ["split_by_seed=true"] if split_by_seed and "fashion" in path.name else []
    comparison, source = comparison_settings.load(path, overrides)
    text = comparison_settings.written(comparison, source)
    (tmp_path / "printed.yaml").write_text(text)
    printed, _ = comparison_settings.load(tmp_path / "printed.yaml", [])
    same: dict[str, Any] = {"base": {}}
    assert printed.model_copy(update=same) == comparison.model_copy(update=same)
    for name in comparison.methods:
        cells = [comparison_settings.method_config(each, "test", name) for each in (comparison, printed)]
        assert cells[0] == cells[1]
    assert "  batch_size: " in text
    assert "# global: over all workers" in text
