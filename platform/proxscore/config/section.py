"""What every part of the configuration is, and the errors of settings."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator


class ConfigError(ValueError):
    """A setting, file or row that is at fault; the message is one line that says what would be right."""


class MethodError(ConfigError):
    """A setting or network that a method refuses."""


class Section(BaseModel):
    """A part of the tree: immutable, and without unknown keys. Where a list of texts is expected, a text is a list of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_of_one(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        alone = {name for name, value in values.items() if isinstance(value, str)}
        texts = {name for name, field in cls.model_fields.items() if name in alone and _lists_texts(field.annotation)}
        return {name: [value] if name in texts else value for name, value in values.items()}


def _lists_texts(annotation: Any) -> bool:
    """Whether a setting is a list of texts, and is never a text itself."""
    if get_origin(annotation) in (Union, UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return bool(options) and all(map(_lists_texts, options))
    if get_origin(annotation) is not list:
        return False
    (inner,) = get_args(annotation)
    return inner is str or (get_origin(inner) is Literal and all(isinstance(value, str) for value in get_args(inner)))
