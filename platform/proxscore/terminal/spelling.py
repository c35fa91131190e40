"""Commands and paths as they have to be typed here: what a job prints for the user to run next works when it is pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(name: str) -> str:
    """How a command is called, in the form in which this process was called: ``proxscore train`` or ``python jobs/train.py``.

    Args:
        name: as ``prepare-data``.
    """
    called = Path(os.path.abspath(sys.argv[0]))
    if called.name == "__main__.py":
        return f"{_program(Path(sys.executable))} -m proxscore {name}"
    if called.suffix == ".py" and called.parent.name == "jobs":
        script = called.with_name(f"{name.replace('-', '_')}.py")
        flag = ""
        if name == "report":
            script, flag = called.with_name("evaluate.py"), " --report"
        return f"{_program(Path(sys.executable))} {shlex.quote(near(script))}{flag}"
    return f"{_program(called) if called.name == 'proxscore' else 'proxscore'} {name}"


def near(path: Path | str) -> str:
    """A path from the current folder where it lies below it, else in full; a URI stays as it is."""
    if "://" in str(path):
        return str(path)
    full = Path(os.path.abspath(path))
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def _program(path: Path) -> str:
    """A program by its name where a shell finds it by that, else by its path."""
    for name in dict.fromkeys((path.name, "python" if path.name.startswith("python") else path.name)):
        found = shutil.which(name)
        if found is not None and os.path.abspath(found) == os.path.abspath(path):
            return name
    return shlex.quote(near(path))
