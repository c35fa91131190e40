"""Reads configurations: YAML, dotted overrides, and errors of one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError

from proxscore.config.credentials import masked
from proxscore.config.plain_values import fault
from proxscore.config.registry import Registry
from proxscore.config.root import Config
from proxscore.config.section import REVEAL, ConfigError, Section, expanded
from proxscore.config.yaml_text import dump_yaml, parse_yaml, read_yaml

Root = TypeVar("Root", bound=Section)
CONFIGS = Path(__file__).parents[1] / "configs"  # that are shipped with the package


def load(path: str | Path | None = None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None) -> Config:
    """Read YAML from ``path`` (none: ``base``, or defaults), apply ``a.b=value`` overrides (values are YAML), and validate.

    Raises:
        ConfigError: one line that names the key at fault and what would be right.
    """
    return parse(*read(path, overrides, base))


def read(
    path: str | Path | None, overrides: Sequence[str] = (), base: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """The plain tree that :func:`load` validates, and what to call it in messages.

    Raises:
        ConfigError: the file, or an override, cannot be read.
    """
    tree: dict[str, Any] = base or {}
    source = "command line"
    if path is not None:
        source = str(path)
        loaded = read_yaml(_shipped(expanded(path)))
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"configuration file {path}: expected keys and values, got a {type(loaded).__name__}")
        tree = loaded or {}
    for override in overrides:
        _override(tree, override)
    return tree, source


def _shipped(path: Path) -> Path:
    """The configuration of this package that a bare name means, as ``quickstart``, where no file has it; else the path."""
    shipped = {file.stem: file for file in CONFIGS.glob("*.yaml")}
    return path if str(path) not in shipped or path.exists() else shipped[str(path)]


def parse(tree: dict[str, Any], source: str = "configuration") -> Config:
    """Validate a plain tree (as read from YAML or JSON)."""
    return validated(Config, tree, source)


def validated(root: type[Root], tree: dict[str, Any], source: str) -> Root:
    """A plain tree as a section of another kind than :class:`Config`.

    Raises:
        ConfigError: as :func:`load`.
    """
    if (found := fault(tree)) is not None:
        key, value, reason = found
        raise ConfigError(f"{source}: {key} is {_short(value)}: {reason}")
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(masked(_one_line(error, source, root, tree))) from None


def dump(config: Config) -> str:
    """The resolved configuration as YAML; ``load`` reads it back to an equal tree, but for credentials, which are masked."""
    return dump_yaml(config.model_dump(mode="json"))


def plain(config: Config) -> dict[str, Any]:
    """The tree that :func:`parse` reads back to an equal one, credentials among it: it must not leave the process."""
    return config.model_dump(mode="json", context=REVEAL)


def with_value(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a plain tree with one value set, by its dotted key."""
    first, _, rest = key.partition(".")
    inner = tree.get(first)
    return tree | {first: with_value(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def flatten(section: Section) -> dict[str, Any]:
    """A resolved section as ``{"training.epochs": 10, ...}``, for tracking."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        # Patterns of parameter names as keys would be no names for MLflow's parameters: such a dictionary is one value.
        if isinstance(value, dict) and value and all(str(key).isidentifier() for key in value):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, value

    return dict(walk("", section.model_dump(mode="json")))


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {_short(override)}: write key=value, for example training.epochs=3")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"override {_short(override)}: {_short(text)} is not a YAML value: {error}") from None
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {_short(override)}: {parent!r} is a value, not a section")
        node = child
    node[last] = value


def _one_line(error: ValidationError, source: str, root: type[Section], tree: Any) -> str:
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "missing":  # a misspelt key explains it
        first = next((error for error in errors if error["type"] == "extra_forbidden"), first)
    location = path = [str(part) for part in first["loc"]]
    dotted = ".".join(path) or "top level"
    if first["type"] == "extra_forbidden":
        key, section = path[-1], sorted(_holder(path[:-1], root, tree).model_fields)
        near = difflib.get_close_matches(key, section, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(section))}"
        return f"{source}: unknown key {dotted!r}; {hint}"
    if first["type"] == "union_tag_invalid":
        tags = first["ctx"]["expected_tags"]
        close = f"did you mean {first['ctx']['near']!r}? " if first["ctx"].get("near") else ""
        return f"{source}: {dotted}.kind is {_short(first['ctx']['tag'])}; {close}it must be one of {tags}"
    if first["type"] == "component":
        return f"{source}: {dotted}: {first['msg']}"
    if first["type"] == "missing":
        return f"{source}: {dotted} is missing; it has no default"
    others = [error for error in errors if error is not first]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_type" and isinstance(first["input"], (int, float)):
        message += ": a text that looks like a number goes into quotes"
    if (place := _alternative(location)) is not None:  # a setting that may be of several types: none of them fits
        dotted = ".".join(path[: _alternative(path)])
        same = [other for other in others if tuple(map(str, other["loc"][:place])) == tuple(location[:place])]
        others = [other for other in others if other not in same]
        words = dict.fromkeys(other["msg"].removeprefix("Input should be ") for other in same)
        message += "".join(f", or {word}" for word in words if word not in message)
    suffix = f" (and {len(others)} more)" if others else ""
    return f"{source}: {dotted} is {_short(first['input'])}: {message[0].lower()}{message[1:]}{suffix}"


#: What pydantic calls the types of a union of plain ones in a location: float, constrained-float, list[float], literal['x'].
_PLAIN = re.compile(r"(constrained-)?(str|int|float|bool)|(list|literal)\[.*\]")


def _alternative(location: list[str]) -> int | None:
    """The position in a location at which one of several types of a setting is named; none if there is none."""
    return next((index for index, part in enumerate(location) if index and _PLAIN.fullmatch(part)), None)


def _short(value: Any) -> str:
    """A value as Python writes it, but not endlessly."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _holder(path: list[str], root: type[Section], tree: Any) -> type[Section]:
    """The section that lies at a path of a tree."""
    section, table = root, None
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
        if table is not None:  # the part is a key of a table of sections
            section, table = _section_in([table], tree) or section, None
        elif part in section.model_fields:
            field = section.model_fields[part]
            if get_origin(field.annotation) is dict:
                table = get_args(field.annotation)[1]
            else:
                section = _section_in([*field.metadata, field.annotation], tree) or section
    return section


def _section_in(annotations: list[Any], value: Any) -> type[Section] | None:
    """The section by which a value of a setting is read; none where it is no section."""
    for annotation in annotations:
        if isinstance(annotation, Registry):
            kind = value.get("kind") if isinstance(value, dict) else None
            return annotation.section(kind or annotation.kinds()[0])
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return annotation
        inner = [*getattr(annotation, "__metadata__", ()), *get_args(annotation)]
        if (found := _section_in(inner, value)) is not None:
            return found
    return None
