"""``proxscore COMMAND ...``: looks up a command, imports its module alone, and runs it.

What stands here is imported before the first line of any command, and knows the standard library only.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from importlib.metadata import version
from typing import NamedTuple

REFUSED = 2


class Command(NamedTuple):
    """Where a command's ``main`` lies, what it does, and arguments that come before those that are given."""

    module: str
    about: str
    before: tuple[str, ...] = ()


COMMANDS = {
    "prepare-data": Command("prepare_data", "make one table of images from folders, CSV, NumPy or IDX files"),
    "train": Command("train", "train a network as a posterior, and a point estimate beside it"),
    "tune": Command("tune", "search settings, repeat the best from other seeds, test the winner once"),
    "compare": Command("compare", "train methods x seeds at an equal budget of gradient evaluations"),
    "evaluate": Command("evaluate", "score a saved posterior on any split and data"),
    "report": Command("evaluate", "say on one page what of a classifier's predictions can be trusted", ("--report",)),
    "predict": Command("predict", "predict images or series with a saved posterior, into a Parquet file"),
    "forecast": Command("forecast", "forecast what comes after the data of a time series"),
    "serve": Command("serve", "answer requests for predictions over HTTP"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: its name and what follows; none: those of the process.

    Returns:
        The exit status: that of the command; 2 where there is none of this name, with one line on stderr.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if given else REFUSED
    name, *rest = given
    if name == "--version":
        print(f"proxscore {version('proxscore')}")
        return 0
    if name == "--print-completion":
        from proxscore.commands.completion import show

        return show(COMMANDS, rest)
    command = COMMANDS.get(name.replace("_", "-"))
    if command is None:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        return REFUSED
    module = importlib.import_module(f"proxscore.commands.{command.module}")
    status: int = module.main([*command.before, *rest])
    return status


def usage() -> str:
    """What ``proxscore --help`` prints."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items())
    return (
        "usage: proxscore COMMAND [--config FILE] [key=value ...]\n\n"
        f"Bayesian deep learning by proximal score matching.\n\n{rows}\n\n"
        "proxscore COMMAND --help tells of a command; proxscore --version of the package."
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it must be one of {', '.join(COMMANDS)}"
    return f"there is no command {name!r}: {hint}"
