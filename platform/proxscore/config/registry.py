"""Registries: components by the kind that a configuration names, imported when they are asked for.

A registry is a table from a kind to ``module:attribute``, to which installed packages add entry points of its group. What
lies there is a :class:`Section` that holds the component's settings and builds it; or a class, whose constructor's
arguments then are the settings (:func:`section_of`). In a section, a component is a field::

    family: Annotated[Component, FAMILIES] = Field(default_factory=FAMILIES.make)

which is validated by the section that its ``kind`` names. Nothing is imported before a kind is named.
"""

from __future__ import annotations

import copy
import difflib
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
        classes: ``module:attribute`` of the base class of components that are no sections, where these may be registered.
    """

    def __init__(self, title: str, group: str, built_in: Mapping[str, str], classes: str | None = None) -> None:
        self.title, self.group, self.built_in, self.classes = title, group, dict(built_in), classes
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
            ConfigError: there is none, it cannot be imported, or it is no such component; names it.
        """
        if kind not in self.kinds():
            raise ConfigError(f"{self.title} {kind!r} is not known; it must be one of {', '.join(self.kinds())}")
        where = self.built_in.get(kind) or _installed(self.group)[kind]
        module, _, attribute = where.partition(":")
        if not attribute:
            raise ConfigError(f"{self.title} {kind}: its entry point is {where}; write module:attribute")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever a foreign module does when it is imported
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{self.title} {kind}: {where} cannot be imported: {why}") from error
        if not isinstance(found, type):
            raise ConfigError(f"{self.title} {kind}: {where} is a {type(found).__name__}, and no class")
        if missing := getattr(found, "__abstractmethods__", None):
            raise ConfigError(f"{self.title} {kind}: {where} lacks {', '.join(sorted(missing))}")
        return found

    def section(self, kind: str) -> type[Component]:
        """The section of a kind.

        Raises:
            ConfigError: there is none; or its own kind is another, or it is none of this sort.
        """
        found = self.component(kind)
        where = f"{self.title} {kind}: {found.__module__}:{found.__qualname__}"
        if issubclass(found, Component):
            own, section = found.model_fields["kind"].default, found
        elif self.classes is not None and issubclass(found, self._class()):
            own = getattr(found, "kind", None)
            try:
                section = section_of(found, kind)
            except Exception as error:  # an annotation that pydantic does not understand
                why = " ".join(str(error).split())[:200]
                raise ConfigError(f"{where} has arguments that are no settings: {why}") from error
        else:
            raise ConfigError(
                f"{where} is no {self.classes.partition(':')[2] if self.classes else 'section of a component'}"
            )
        if own != kind:
            raise ConfigError(f"{where} has kind {own!r}, and is registered as {kind!r}: they must be equal")
        return section

    def _class(self) -> type[Any]:
        assert self.classes is not None
        module, _, attribute = self.classes.partition(":")
        found: type[Any] = getattr(importlib.import_module(module), attribute)
        return found

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
                raise self._unknown(value.kind, sort)
            return value
        if not isinstance(value, dict):
            hint = f": write kind={value}" if value in self.kinds() else ""
            raise PydanticCustomError(
                "model_type", "Input should be a section with keys and values{hint}", {"hint": hint}
            )
        kind = value.get("kind", self.kinds()[0])
        if kind not in self.kinds():
            raise self._unknown(kind, sort)
        try:
            section = self.section(kind)
        except ConfigError as error:
            raise PydanticCustomError("component", "{reason}", {"reason": str(error)}) from error
        if not issubclass(section, sort):
            reason = f"{self.title} {kind}: {section.__name__} is no {sort.__name__}"
            raise PydanticCustomError("component", "{reason}", {"reason": reason})
        return section.model_validate(value)

    def _unknown(self, kind: Any, sort: type[Component]) -> PydanticCustomError:
        expected = ", ".join(repr(known) for known in self.kinds() if known in self.built_in or self._is(known, sort))
        near = difflib.get_close_matches(str(kind), self.kinds(), n=1, cutoff=0.6)
        context = {"tag": kind, "expected_tags": expected, "near": near[0] if near else ""}
        return PydanticCustomError("union_tag_invalid", "Unknown kind", context)

    def _is(self, kind: str, sort: type[Component]) -> bool:
        """Whether a component of another package is of this sort; one that cannot be imported may be."""
        try:
            return issubclass(self.section(kind), sort)
        except ConfigError:
            return True

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
            ValueError: settings that it refuses, or that a saved posterior would not know.
        """
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}
        found = self.builds(**given)
        if forgotten := given.keys() - found.settings().keys():
            raise ValueError(
                f"{self.kind}: {self.builds.__qualname__}.settings() lacks {', '.join(sorted(forgotten))}, which a saved "
                "posterior must know to build it again"
            )
        return found


@cache
def section_of(component: Any, kind: str) -> type[Built]:
    """The section of a class: its constructor's arguments with their types and defaults.

    Bounds are said by the types: ``rank: Annotated[int, Field(ge=1)] = 8``.
    """
    hints = get_type_hints(component.__init__, include_extras=True)
    fields: dict[str, Any] = {"kind": (Literal[kind], kind)}
    for name, parameter in list(inspect.signature(component.__init__).parameters.items())[1:]:
        if hasattr(Built, name):
            raise TypeError(f"an argument may not be called {name}")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        needed = parameter.default is parameter.empty
        fields[name] = (hints.get(name, Any), Field() if needed else Field(parameter.default))
    made = create_model(f"{component.__name__}Section", __base__=Built, __doc__=component.__doc__, **fields)
    made.builds = component
    return made


def _remade(component: Any, kind: str, settings: dict[str, Any]) -> Built:
    return section_of(component, kind)(**settings)
