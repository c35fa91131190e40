"""What every part of the configuration is, and the errors of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticUndefined

MAX_NAME = 255  # bytes of a part of a path, on any common file system


class ConfigError(ValueError):
    """A setting, file or row that is at fault; the message is one line that says what would be right."""


class MethodError(ConfigError):
    """A setting or network that a method refuses."""


class Section(BaseModel):
    """A part of the tree: immutable, and without unknown keys.

    Numbers are finite. Where a field is one of several kinds of section and ``kind`` is left out, the kind is that of the field's
    default, or the first one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _with_kinds(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        for name, field in cls.model_fields.items():
            if name in filled:
                filled[name] = _kinded(filled[name], field.annotation, field.default)
        return filled

    @field_validator("*", mode="after")
    @classmethod
    def _with_possible_paths(cls, value: Any) -> Any:
        if isinstance(value, Path):
            check_path(value)
        return value


def check_path(path: Path) -> None:
    """Raise ValueError for a path that no file system takes: even to look whether it is there is an error."""
    if any(len(part.encode()) > MAX_NAME for part in path.parts):
        raise ValueError(f"a part of this path has more than {MAX_NAME} bytes")


def _kinded(value: Any, annotation: Any, default: Any) -> Any:
    """A value with the kind that it leaves out, where there are several kinds of section to choose from."""
    if get_origin(annotation) is dict and isinstance(value, dict):
        return {key: _kinded(inner, get_args(annotation)[1], PydanticUndefined) for key, inner in value.items()}
    kinds = _kinds(annotation)
    if len(kinds) < 2 or not isinstance(value, dict) or "kind" in value:
        return value
    return {"kind": getattr(default, "kind", kinds[0])} | value


def _kinds(annotation: Any) -> list[str]:
    """The kinds of a union of sections, in its order; of anything else none."""
    if hasattr(annotation, "__metadata__"):  # Annotated
        annotation = get_args(annotation)[0]
    members = [member for member in get_args(annotation) if isinstance(member, type) and issubclass(member, Section)]
    return [get_args(member.model_fields["kind"].annotation)[0] for member in members if "kind" in member.model_fields]
