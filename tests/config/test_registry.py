"""Components by kind: what a section takes, what it refuses, and that it travels to other processes."""

from __future__ import annotations

import pickle
from typing import Annotated

import pytest

from proxscore.config import FAMILIES, IMAGE_SOURCES, METHODS, PENALTIES, SERIES_SOURCES, TASKS, ConfigError, Section
from proxscore.config import registry as registries
from proxscore.config.reading import parse, validated
from proxscore.inference import LowRank
from proxscore.vision.sources.base import ImageSource


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
    found = {"away": "no_such_package.at_all:Section", "series": "proxscore.forecasting.sources.taylor:TaylorConfig"}
    monkeypatch.setattr(registries, "_installed", lambda group: found if group == "proxscore.sources" else {})
    with pytest.raises(
        ConfigError, match=r"^here: data: source of images away: no_such_package\.at_all:Section cannot be"
    ):
        validated(Holder, {"data": {"kind": "away"}}, "here")
    with pytest.raises(ConfigError, match=r"^here: data: source of images series: TaylorConfig is no ImageSource$"):
        validated(Holder, {"data": {"kind": "series"}}, "here")
