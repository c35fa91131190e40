"""What every part of the configuration is, and the errors of settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from proxscore.config.credentials import masked_tree

REVEAL = {"credentials": True}  # context of a dump that stays in the process


class ConfigError(ValueError):
    """A setting, file or row that is at fault; the message is one line that says what would be right."""


class MethodError(ConfigError):
    """A setting or network that a method refuses."""


class DivergedError(FloatingPointError):
    """The numbers of a run are no longer finite; the message is one line with the step and the settings to change."""


class Section(BaseModel):
    """A part of the tree: immutable, and without unknown keys.

    A path that begins with ``~`` is that of the user's folder. What a section is dumped to, or printed as, keeps no
    credentials of URIs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return expanded(value) if isinstance(value, Path) else value

    @model_serializer(mode="wrap")
    def _mask(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        return dump(self) if info.context == REVEAL else masked_tree(dump(self))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, masked_tree(value)


def expanded(path: str | Path) -> Path:
    """A path with ``~`` or ``~user`` at its beginning replaced by that user's folder.

    Raises:
        ConfigError: there is no such user, or no such folder is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"path {path}: {str(error).lower()}") from error
