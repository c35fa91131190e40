"""The base class of every part of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from proxscore.config.credentials import masked_tree
from proxscore.config.errors import ConfigError

REVEAL = {"credentials": True}  # context of a dump that stays in the process
MAX_NAME = 255  # bytes of a part of a path, on any common file system


class Section(BaseModel):
    """A part of the tree: immutable, and without unknown keys.

    Numbers are finite. A path that begins with ``~`` is that of the user's folder; where a list of texts is expected, a text is a
    list of one. What a section is dumped to, or printed as, keeps no credentials of URIs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_of_one(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        alone = {name for name, value in values.items() if isinstance(value, str)}
        texts = {name for name, field in cls.model_fields.items() if name in alone and _lists_texts(field.annotation)}
        return {name: [value] if name in texts else value for name, value in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"{str(value).lower()} is no number")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if not isinstance(value, Path):
            return value
        path = expanded(value)
        check_path(path)
        return path

    @model_serializer(mode="wrap")
    def _mask(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        return dump(self) if info.context == REVEAL else masked_tree(dump(self))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, masked_tree(value)


def _is_number(annotation: Any) -> bool:
    """Whether a setting is a number, or null, and is never true or false."""
    if annotation in (int, float):
        return True
    if get_origin(annotation) in (Union, UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return bool(options) and all(map(_is_number, options))
    return hasattr(annotation, "__metadata__") and _is_number(get_args(annotation)[0])


def _lists_texts(annotation: Any) -> bool:
    """Whether a setting is a list of texts, and is never a text itself."""
    if get_origin(annotation) in (Union, UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return bool(options) and all(map(_lists_texts, options))
    if get_origin(annotation) is not list:
        return False
    (inner,) = get_args(annotation)
    return inner is str or (get_origin(inner) is Literal and all(isinstance(value, str) for value in get_args(inner)))


def expanded(path: str | Path) -> Path:
    """A path with ``~`` or ``~user`` at its beginning replaced by that user's folder.

    Raises:
        ConfigError: there is no such user, or no such folder is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"path {path}: {str(error).lower()}") from error


def check_path(path: Path) -> None:
    """Raise ValueError for a path that no file system takes: even to look whether it is there is an error."""
    if any(len(part.encode()) > MAX_NAME for part in path.parts):
        raise ValueError(f"a part of this path has more than {MAX_NAME} bytes")
