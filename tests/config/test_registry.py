"""Components by kind: what a section takes, what it refuses, and that it travels to other processes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from proxscore.config import (
    FAMILIES,
    IMAGE_SOURCES,
    METHODS,
    PENALTIES,
    SERIES_SOURCES,
    TASKS,
    ConfigError,
    MethodSection,
    Section,
)
from proxscore.config import registry as registries
from proxscore.config.reading import parse, validated, with_value
from proxscore.inference import Family, LowRank
from proxscore.vision.sources.base import ImageSource

RANDOM = 4


class Holder(Section):
    data: Annotated[ImageSource, IMAGE_SOURCES]


@pytest.mark.parametrize("registry", [METHODS, FAMILIES, PENALTIES, TASKS, IMAGE_SOURCES, SERIES_SOURCES])
def test_every_built_in_component_is_there_and_has_its_own_kind(registry: registries.Registry) -> None:
    for kind in registry.kinds():
        section = registry.section(kind)
        assert section.model_fields["kind"].default == kind
        assert issubclass(section, registries.Component)


def test_the_section_of_a_class_has_its_arguments_as_settings_and_builds_it() -> None:
    section = FAMILIES.section("low_rank")
    assert {name: field.default for name, field in section.model_fields.items()} == {
        "kind": "low_rank",
        "rank": 8,
        "spread": 0.1,
    }
    made = section.model_validate({"rank": 3}).build()  # type: ignore[attr-defined]
    assert isinstance(made, LowRank)
    assert (made.rank, made.spread) == (3, 0.1)


def test_a_configuration_with_sections_of_classes_is_the_same_after_pickling() -> None:
    config = parse({"method": {"family": {"kind": "low_rank", "rank": 3}, "families": {"head.*": {"kind": "mixture"}}}})
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert again.method.families["head.*"].build().components == 2


def test_what_cannot_be_imported_or_is_of_another_sort_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"away": "no_such_package.at_all:Section", "taylor": "proxscore.forecasting.sources.taylor:TaylorConfig"}
    monkeypatch.setattr(registries, "_installed", lambda group: found if group == "proxscore.sources" else {})
    with pytest.raises(
        ConfigError, match=r"^here: data: source of images away: no_such_package\.at_all:Section cannot be"
    ):
        validated(Holder, {"data": {"kind": "away"}}, "here")
    with pytest.raises(ConfigError, match=r"^here: data: source of images taylor: TaylorConfig is no ImageSource$"):
        validated(Holder, {"data": {"kind": "taylor"}}, "here")


class Forgetful(Family):
    """A family of a stranger: its settings say less than its constructor takes."""

    kind = "forgetful"

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def settings(self) -> dict[str, Any]:
        return {}

    initial = draw = mean = variance = log_prob = parameters = candidate = None  # type: ignore[assignment]


class Other(Forgetful):
    kind = "another"


class Reserved(Forgetful):
    kind = "reserved"

    def __init__(self, build: int = 1) -> None:
        self.build = build


class Halves(MethodSection):
    """A method of a stranger without ``build``."""

    kind: Literal["halves"] = "halves"


class Downhill(MethodSection):
    """A method of a stranger whose default lies outside its own bound."""

    kind: Literal["downhill"] = "downhill"
    lr: float = Field(-1.0, gt=0)

    def build(self, setup: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("registry", "kind", "name", "message"),
    [
        (
            FAMILIES,
            "odd",
            "Other",
            r"family odd: .*:Other has kind 'another', and is registered as 'odd': they must be equal",
        ),
        (FAMILIES, "reserved", "Reserved", r"family reserved: .* no settings: an argument may not be called build"),
        (FAMILIES, "path", "Path", r"family path: .*Path is no Family$"),
        (METHODS, "halves", "Halves", r"method halves: .*:Halves lacks build$"),
        (METHODS, "path", "Path", r"method path: .*Path is no section of a component$"),
        (METHODS, "number", "RANDOM", r"method number: .*:RANDOM is a int, and no class$"),
        (METHODS, "colon", "", r"method colon: its entry point is .*; write module:attribute$"),
    ],
)
def test_a_component_that_cannot_serve_is_named_with_its_entry_point(
    registry: registries.Registry, kind: str, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"{__name__}:{name}" if name else __name__
    monkeypatch.setattr(registries, "_installed", lambda group: {kind: where})
    with pytest.raises(ConfigError, match=message) as caught:
        registry.section(kind)
    assert "\n" not in str(caught.value)


def test_a_module_that_breaks_when_it_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registries, "_installed", lambda group: {"broken": "broken_module:X"})
    with pytest.raises(ConfigError, match=r"method broken: broken_module:X cannot be imported: SyntaxError"):
        METHODS.section("broken")


def test_settings_that_a_saved_posterior_would_not_know_are_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registries, "_installed", lambda group: {"forgetful": f"{__name__}:Forgetful"})
    section: Any = FAMILIES.section("forgetful").model_validate({"factor": 30})
    with pytest.raises(ValueError, match=r"forgetful: Forgetful\.settings\(\) lacks factor"):
        section.build()


def test_a_default_outside_its_own_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "_installed", lambda group: {"downhill": f"{__name__}:Downhill"})
    with pytest.raises(ConfigError, match=r"method\.lr is -1\.0: input should be greater than 0"):
        parse({"method": {"kind": "downhill"}})


@pytest.mark.parametrize("key", ["method.lr", "training.epochs", "seed", "method.initial_noise", "method.family.rank"])
def test_true_is_no_number(key: str) -> None:
    tree = {"method": {"family": {"kind": "low_rank"}}} if "rank" in key else {}
    with pytest.raises(ConfigError, match=rf"{key} is True: true is no number"):
        parse(with_value(tree, key, True))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"method": {"kind": "AdamW"}}, r"method\.kind is 'AdamW'; did you mean 'adamw'\? it must be one of"),
        ({"method": "adamw"}, r"method is 'adamw': input should be a section with keys and values: write kind=adamw"),
        (
            {"method": {"families": {"a": {"kind": "low_rank", "rnk": 1}}}},
            r"unknown key 'method\.families\.a\.rnk'; did you mean 'rank'",
        ),
    ],
)
def test_what_was_probably_meant_is_said(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(tree)
