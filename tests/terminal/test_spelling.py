"""Commands that are printed for the user work when they are pasted into the shell that printed them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxscore.terminal import near

PRINT = "import sys; from proxscore.terminal import command; print(command(sys.argv.pop()))"


def printed(folder: Path, environment: dict[str, str], *start: str) -> str:
    """What a process that was started in this way prints."""
    done = subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


@pytest.fixture
def environment(repository: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(repository / "platform"), "PATH": "/usr/bin:/bin"}


def test_a_script_prints_scripts_beside_it_by_its_own_interpreter(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "a checkout" / "jobs"
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(PRINT)
    called = printed(folder.parent, environment, sys.executable, "jobs/train.py", "prepare-data")
    assert called == f"{sys.executable} jobs/prepare_data.py"
    called = printed(tmp_path, environment, sys.executable, "a checkout/jobs/train.py", "evaluate")
    assert called == f"{sys.executable} 'a checkout/jobs/evaluate.py'"
    called = printed(folder, environment, sys.executable, "train.py", "report")
    assert called == f"{sys.executable} evaluate.py --report"
    (folder / "evaluate.py").write_text("import sys; print(sys.argv[1:])")
    called = printed(folder.parent, environment, sys.executable, "jobs/train.py", "report")
    assert printed(folder.parent, environment, "/bin/sh", "-c", f"{called} x") == "['--report', 'x']"


def test_an_interpreter_on_the_path_is_called_by_its_name(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text(PRINT)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    called = printed(tmp_path, environment, sys.executable, "jobs/train.py", "evaluate")
    assert called == f"{Path(sys.executable).name} jobs/evaluate.py"


def test_the_console_command_prints_itself_by_name_or_by_path(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "proxscore"
    program.write_text(f"#!{sys.executable}\n{PRINT}")
    program.chmod(0o755)
    assert printed(tmp_path, environment, str(program), "serve") == "bin/proxscore serve"
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    assert printed(tmp_path, environment, "proxscore", "serve") == "proxscore serve"


def test_the_module_prints_itself(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(PRINT)
    called = printed(tmp_path, environment, sys.executable, "-m", "package", "report")
    assert called == f"{sys.executable} -m proxscore report"


def test_a_path_below_the_current_folder_is_short_and_another_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert near(tmp_path / "here" / "runs" / "a") == "runs/a"
    assert near("runs/a") == "runs/a"
    assert near(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")
    assert near("s3://bucket/runs") == "s3://bucket/runs"
