"""A configuration as YAML with a comment beside every key: that which stands beside the setting in the source.

A setting is documented in one place, where it is declared::

    epochs: float = Field(10, gt=0)  # passes over the training data
    # Null: a new one; a known one resumes.
    name: str | None = None

Those of a component that is a class (a family) are documented among the ``Args`` of its docstring.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from proxscore.config.registry import Built, Component, Registry
from proxscore.config.section import Section
from proxscore.config.yaml_text import dump_yaml

WIDTH = 120  # of a line with its comment beside; longer ones stand above their key
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def dump_commented(section: Section, tree: dict[str, Any] | None = None) -> str:
    """A section as YAML with comments, which reads back to an equal one, but for credentials, which are masked.

    Args:
        tree: what is written, a part of the section's dump; none: all of it.
    """
    return _text(section, section.model_dump(mode="json") if tree is None else tree)


def _text(section: Section, tree: dict[str, Any], kinds: Sequence[str] = ()) -> str:
    """One section.

    Args:
        kinds: that it might have instead.
    """
    found, beside = "", comments(type(section))
    for key, value in tree.items():
        inner, annotation = getattr(section, key, None), type(section).model_fields[key]
        sorts = _sorts([*annotation.metadata, annotation.annotation], value)
        comment = beside.get(key, "")
        if isinstance(inner, Section) and value:
            found += with_comment(comment or _title(type(inner)), f"{key}:")
            found += textwrap.indent(_text(inner, value, sorts), "  ")
        else:
            if key == "kind" and kinds:
                comment = f"or {', '.join(kinds)}"
            elif sorts and not all(sort in comment for sort in sorts):
                comment = f"{comment}{'; ' if comment else ''}or {', '.join(sorts)}"
            found += with_comment(comment, dump_yaml({key: value}).rstrip("\n"))
    return found


def _sorts(annotations: Sequence[Any], value: Any) -> list[str]:
    """The other texts that a setting may be, or the other kinds of its section, where they are known by name."""
    found: list[str] = []
    for annotation in annotations:
        if isinstance(annotation, Registry):
            own = value.get("kind") if isinstance(value, dict) else None
            found += [kind for kind in annotation.kinds() if own is not None and kind != own]
        elif get_origin(annotation) is Literal:
            found += [str(each) for each in get_args(annotation) if each != value]
        elif get_origin(annotation) in (Annotated, Union, UnionType):
            found += _sorts([*getattr(annotation, "__metadata__", ()), *get_args(annotation)], value)
    return list(dict.fromkeys(found))


def with_comment(comment: str, text: str) -> str:
    """A key, and its value, with its comment beside it if there is room, else above it."""
    if not comment:
        return f"{text}\n"
    if "\n" not in text and len(text) + len(comment) + 4 <= WIDTH - 16:  # some levels of indentation
        return f"{text}  # {comment}\n"
    return "".join(f"# {line}\n" for line in textwrap.wrap(comment, WIDTH - 20)) + f"{text}\n"


def _title(documented: type[Any]) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) |[.;:]$", text)[0].rstrip(".:;").replace("``", "")


@cache
def comments(section: type[Section]) -> dict[str, str]:
    """The comment of each setting of a section; those of which none is there are left out."""
    if issubclass(section, Built) and hasattr(section, "builds"):
        return {"kind": _title(section.builds)} | _arguments(section.builds)
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, Section) and base is not Section:
            found |= _declared(base)
    if issubclass(section, Component):
        found.setdefault("kind", _title(section))
    return found


def _arguments(component: type[Any]) -> dict[str, str]:
    """What a docstring in Google's style says of the arguments of a class."""
    documented = (inspect.getdoc(component) or "").partition("Args:\n")[2]
    return {name: " ".join(text.split()).replace("``", "").rstrip(".") for name, text in _ARGUMENT.findall(documented)}


def _declared(section: type[Section]) -> dict[str, str]:
    """The comments beside or above the settings that a class itself declares."""
    try:
        source = textwrap.dedent(inspect.getsource(section))
    except (OSError, TypeError):  # made at run time, or installed without its source
        return {}
    lines, beside = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            beside[token.start[0]] = token.string.lstrip("#: ").strip()
    found = {}
    declared = ast.parse(source).body[0]
    assert isinstance(declared, ast.ClassDef)
    for statement in declared.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        assert statement.end_lineno is not None
        own = [beside[line] for line in range(statement.lineno, statement.end_lineno + 1) if line in beside]
        above: list[str] = []
        line = statement.lineno - 1
        while line in beside and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, beside[line])
            line -= 1
        if text := " ".join([*above, *own]):
            found[statement.target.id] = text.replace("``", "").removesuffix(".") if text[-3:] != "..." else text
    return found
