"""Scripts that complete ``proxscore`` commands, options and files in a shell."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping

import shtab

from proxscore import job
from proxscore.commands.main import Command
from proxscore.config import ConfigError

#: Arguments that are files or folders.
FILES = ("config", "output", "posterior", "result", "source")


def show(commands: Mapping[str, Command], arguments: list[str]) -> int:
    """Print the script for the shell that the arguments name."""

    def work() -> int:
        print(script(commands, arguments[0] if arguments else "SHELL"))
        return 0

    return job.run(work, "completion")


def script(commands: Mapping[str, Command], shell: str) -> str:
    """What a shell reads to complete the commands.

    Raises:
        ConfigError: a shell for which there is none.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(f"--print-completion {shell}: it must be one of {', '.join(shtab.SUPPORTED_SHELLS)}")
    whole = argparse.ArgumentParser(prog="proxscore")
    inner = whole.add_subparsers()
    for name, command in commands.items():
        own = importlib.import_module(f"proxscore.commands.{command.module}").parser()
        for action in own._actions:
            if action.dest in FILES:
                action.complete = shtab.FILE
        inner.add_parser(name, parents=[own], add_help=False, help=command.about)
    text: str = shtab.complete(whole, shell)
    return text
