"""The console command that pyproject.toml declares exists, and every job has its wrapper of the same name."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from proxscore.commands.main import COMMANDS, main


def test_the_console_script_is_the_dispatcher(repository: Path) -> None:
    scripts = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]
    assert list(scripts) == ["proxscore"]
    assert EntryPoint("proxscore", scripts["proxscore"], "console_scripts").load() is main


def test_the_module_is_the_same_command(repository: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository / "platform")}
    command = [sys.executable, "-m", "proxscore"]
    done = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "prepare-data" in done.stdout
    done = subprocess.run([*command, "no"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2


@pytest.mark.parametrize(
    "script", sorted((Path(__file__).parents[2] / "jobs").glob("*.py")), ids=lambda path: path.stem
)
def test_a_job_calls_the_command_of_its_name_and_nothing_else(script: Path) -> None:
    assert f"from proxscore.commands.{script.stem} import main\n" in script.read_text()
    assert len(script.read_text().splitlines()) < 10
    assert script.stem in {command.module for command in COMMANDS.values()}
