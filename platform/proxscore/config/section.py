"""What every part of the configuration is, and the errors of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A setting, file or row that is at fault; the message is one line that says what would be right."""


class MethodError(ConfigError):
    """A setting or network that a method refuses."""


class Section(BaseModel):
    """A part of the tree: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
