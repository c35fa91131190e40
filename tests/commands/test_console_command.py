"""``proxscore COMMAND``: what it dispatches to, what it says, and how little it imports."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from proxscore.commands import parser as parsers
from proxscore.commands.main import COMMANDS, main

HERE = [name for name, command in COMMANDS.items() if find_spec(f"proxscore.commands.{command.module}") is not None]
HEAVY = ("torch", "ray", "mlflow", "numpy", "pydantic", "rich")


def test_help_lists_every_command_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert line.endswith(command.about)
        assert len(line) <= 100
    assert main([]) == 2
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", "did you mean train"),
        ("evalute", "did you mean evaluate"),
        ("predicts", "did you mean predict"),
        ("xyz", f"it must be one of {', '.join(COMMANDS)}"),
        ("", f"it must be one of {', '.join(COMMANDS)}"),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest_names(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: there is no command {name!r}: {hint}")
    assert err.count("\n") == 1


def test_help_imports_nothing_that_is_slow(repository: Path) -> None:
    code = f"""
import sys
from proxscore.commands.main import main
assert main(["--help"]) == 0 and main(["trian"]) == 2
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    environment = os.environ | {"PYTHONPATH": str(repository / "platform")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", HERE)
def test_a_command_imports_neither_torch_nor_ray_nor_mlflow_before_its_first_line(name: str, repository: Path) -> None:
    code = f"""
import sys
from proxscore.commands.main import main
try:
    main([{name!r}, "--help"])
except SystemExit:
    pass
print([name for name in ("torch", "ray", "mlflow") if name in sys.modules], file=sys.stderr)
"""
    environment = os.environ | {"PYTHONPATH": str(repository / "platform")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", HERE)
def test_help_of_a_command_tells_the_default_of_every_option_that_has_one(name: str) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(f"proxscore.commands.{COMMANDS[name].module}").parser()
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        if (
            action.option_strings
            and action.default not in (None, argparse.SUPPRESS, [])
            and action.default is not False
        ):
            shown = action.default if isinstance(action.default, (tuple, list)) else [action.default]
            assert f"(default: {' '.join(map(str, shown))})" in text, action.option_strings
        assert action.help, action.dest


def test_examples_of_a_command_are_in_the_form_in_which_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    documented = "Trains.\n\npython jobs/prepare_data.py x\ntorchrun --nproc-per-node 2 jobs/train.py y"
    monkeypatch.setattr(sys, "argv", ["jobs/train.py"])
    assert "jobs/prepare_data.py x" in parsers.parser("train", documented).format_help()
    monkeypatch.setattr(sys, "argv", ["/nowhere/bin/proxscore"])
    text = parsers.parser("train", documented).format_help()
    assert "/nowhere/bin/proxscore prepare-data x" in text
    assert "torchrun --nproc-per-node 2 -m proxscore train y" in text


def test_report_is_evaluate_with_its_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", str(tmp_path / "nowhere"), "--coverage", "7"]) == 2
    assert "coverage" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_completes_commands_and_their_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert "prepare-data" in script
    assert "--print-config" in script
    if shell == "bash":
        ask = (
            "\nCOMP_WORDS=(proxscore tr); COMP_CWORD=1; _shtab_proxscore; echo ${COMPREPLY[@]}"
            "\nCOMP_WORDS=(proxscore train --print); COMP_CWORD=2; _shtab_proxscore; echo ${COMPREPLY[@]}\n"
        )
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, timeout=30)
        assert done.stdout.split() == ["train", "--print-config"]


def test_a_shell_that_is_not_known_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "cmd"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --print-completion cmd: it must be one of bash, zsh")
