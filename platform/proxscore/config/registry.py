"""Registries: components by the kind that a configuration names, imported when they are asked for.

A registry is a table from a kind to ``module:attribute``, to which installed packages add entry points of its group. What
lies there is a :class:`Section` that holds the component's settings and builds it; or a class, whose constructor's
arguments then are the settings (:func:`section_of`). In a section, a component is a field::

    family: Annotated[Component, FAMILIES] = Field(default_factory=FAMILIES.make)

which is validated by the section that its ``kind`` names. Nothing is imported before a kind is named.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, get_type_hints

from pydantic import Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from proxscore.config.section import ConfigError, Section


class Component(Section):
    """The settings of a component, and how to build it.

    Attributes:
        kind: its name; a subclass declares it as a field, ``kind: Literal["name"] = "name"``.
        extra: the optional dependencies that it needs, an extra of this package; none: no others.
    """

    extra: ClassVar[str | None] = None
    kind: str


class Registry:
    """Components of one sort, by kind.

    Args:
        title: what one of them is called in messages, as ``method``.
        group: of the entry points by which other packages add theirs.
        built_in: kind -> ``module:attribute``.
    """

    def __init__(self, title: str, group: str, built_in: Mapping[str, str]) -> None:
        self.title, self.group, self.built_in = title, group, dict(built_in)
        self._kinds: Callable[[], list[str]] = lambda: list(dict.fromkeys([*self.built_in, *_installed(self.group)]))

    def only(self, *kinds: str) -> Registry:
        """The same registry of some kinds alone; the first of them is the default."""
        found = copy.copy(self)
        found._kinds = lambda: list(kinds)
        return found

    def default(self, kind: str, *, without: str = "") -> Registry:
        """The same registry with another kind as the default, and without one that may not be named."""
        found = copy.copy(self)
        found._kinds = lambda: [kind, *(other for other in self._kinds() if other not in (kind, without))]
        return found

    def kinds(self) -> list[str]:
        """All kinds that a configuration may name; the first of them is the default."""
        return self._kinds()

    def component(self, kind: str) -> Any:
        """The component that is registered by a kind: a section, or a class.

        Raises:
            ConfigError: there is none, or it cannot be imported.
        """
        if kind not in self.kinds():
            raise ConfigError(f"{self.title} {kind!r} is not known; it must be one of {', '.join(self.kinds())}")
        where = self.built_in.get(kind) or _installed(self.group)[kind]
        module, _, attribute = where.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self.title} {kind}: {where} cannot be imported: {error}") from error

    def section(self, kind: str) -> type[Component]:
        """The section of a kind.

        Raises:
            ConfigError: there is none.
        """
        found = self.component(kind)
        return found if issubclass(found, Component) else section_of(found, kind)

    def make(self) -> Any:
        """The section of the default kind, with the defaults of its settings."""
        return self.section(self.kinds()[0]).model_validate({})

    def validate(self, value: Any, sort: type[Component]) -> Component:
        """A component's section from what a configuration says of it.

        Args:
            sort: what the section must be.
        """
        if isinstance(value, sort):
            if value.kind not in self.kinds():
                raise self._unknown(value.kind)
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("model_type", "Input should be a section with keys and values")
        kind = value.get("kind", self.kinds()[0])
        if kind not in self.kinds():
            raise self._unknown(kind)
        try:
            section = self.section(kind)
        except ConfigError as error:
            raise PydanticCustomError("component", "{reason}", {"reason": str(error)}) from error
        if not issubclass(section, sort):
            reason = f"{self.title} {kind}: {section.__name__} is no {sort.__name__}"
            raise PydanticCustomError("component", "{reason}", {"reason": reason})
        return section.model_validate(value)

    def _unknown(self, kind: Any) -> PydanticCustomError:
        expected = ", ".join(map(repr, self.kinds()))
        return PydanticCustomError("union_tag_invalid", "Unknown kind", {"tag": kind, "expected_tags": expected})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            partial(self.validate, sort=source), serialization=core_schema.simple_ser_schema("any")
        )


@cache
def _installed(group: str) -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=group)}


class Built(Component):
    """A section whose component is a class that takes the settings as they are."""

    builds: ClassVar[Any]

    def __reduce__(self) -> Any:  # its class is made when it is asked for, in the process that unpickles it, too
        return _remade, (self.builds, self.kind, dict(self))

    def build(self) -> Any:
        """The component.

        Raises:
            ValueError: settings that it refuses.
        """
        return self.builds(**{name: getattr(self, name) for name in type(self).model_fields if name != "kind"})


@cache
def section_of(component: Any, kind: str) -> type[Built]:
    """The section of a class: its constructor's arguments with their types and defaults.

    Bounds are said by the types: ``rank: Annotated[int, Field(ge=1)] = 8``.
    """
    hints = get_type_hints(component.__init__, include_extras=True)
    fields: dict[str, Any] = {"kind": (Literal[kind], kind)}
    for name, parameter in list(inspect.signature(component.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        needed = parameter.default is parameter.empty
        fields[name] = (hints.get(name, Any), Field() if needed else Field(parameter.default))
    made = create_model(f"{component.__name__}Section", __base__=Built, __doc__=component.__doc__, **fields)
    made.builds = component
    return made


def _remade(component: Any, kind: str, settings: dict[str, Any]) -> Built:
    return section_of(component, kind)(**settings)
