"""The errors of settings, which every part of the package raises."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting, file or row that is at fault; the message is one line that says what would be right."""


class MethodError(ConfigError):
    """A setting or network that a method refuses."""


class DivergedError(FloatingPointError):
    """The numbers of a run are no longer finite; the message is one line with the step and the settings to change."""
