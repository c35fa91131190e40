"""Parsers of command lines: help that shows defaults, and examples in the form in which the command was called."""

from __future__ import annotations

import argparse
import re
from typing import Any

from proxscore.terminal import command

_CALL = re.compile(r"python jobs/(\w+)\.py")
_UNDER_TORCHRUN = re.compile(r"(?<=torchrun)(.* )jobs/(\w+)\.py")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a description, and tells the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        if not action.option_strings or default is None or default is False or default in ([], argparse.SUPPRESS):
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{text}{' ' if text else ''}(default: {shown})".replace("%", "%%")


def parser(name: str, documented: str | None, **options: Any) -> argparse.ArgumentParser:
    """The parser of a command.

    Args:
        name: of the command.
        documented: the docstring of its module, whose examples say ``python jobs/train.py``.
        options: as ``ArgumentParser`` takes them.
    """
    text = _CALL.sub(lambda found: command(found[1].replace("_", "-")), documented or "")
    text = _UNDER_TORCHRUN.sub(lambda found: f"{found[1]}-m proxscore {found[2].replace('_', '-')}", text)
    return argparse.ArgumentParser(prog=command(name), description=text, formatter_class=_Help, **options)


def draws(text: str) -> int | str:
    """A number of draws, or ``auto``: a type of arguments.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None
