"""The README's commands are what CI runs, and the files that the cluster's settings name exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def quickstart_blocks(text: str) -> list[str]:
    """The ```sh blocks of the section "Quickstart"."""
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    [quickstart] = [part for part in section if part.splitlines()[0].strip() == "Quickstart"]
    return re.findall(r"^```sh\n(.*?)^```", quickstart, flags=re.MULTILINE | re.DOTALL)


def ci_run(repository: Path, folder: Path, readme: str) -> subprocess.CompletedProcess[str]:
    """Run CI's script in a folder that has nothing else but this README."""
    (folder / ".ci").mkdir()
    shutil.copy(repository / ".ci" / "run", folder / ".ci" / "run")
    (folder / "README.md").write_text(readme)
    return subprocess.run([folder / ".ci" / "run"], cwd="/", capture_output=True, text=True, timeout=30)


def test_the_first_two_commands_are_single_lines_that_do_all_the_set_up(repository: Path) -> None:
    train, test = quickstart_blocks((repository / "README.md").read_text())[:2]
    for command in (train, test):
        assert len(command.strip().splitlines()) == 1
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert ".venv/bin/proxscore train --config quickstart" in train
    assert test.strip().endswith(".venv/bin/pytest -n 2 --dist loadfile")
    assert "test" in test.split("[")[1]


def test_ci_runs_the_second_command_of_the_readme(repository: Path, tmp_path: Path) -> None:
    real = (repository / "README.md").read_text()
    first, second = quickstart_blocks(real)[:2]
    readme = real.replace(first, "echo ran-the-first\n").replace(second, "echo ran-the-second in $PWD CI=$CI\n")
    assert readme != real
    done = ci_run(repository, tmp_path, readme)
    assert f"ran-the-second in {tmp_path} CI=true" in done.stdout.splitlines()
    assert "ran-the-first" not in done.stdout.splitlines()


def test_ci_fails_when_the_linters_cannot_run_though_the_tests_pass(repository: Path, tmp_path: Path) -> None:
    done = ci_run(repository, tmp_path, "## Quickstart\n\n```sh\nfalse\n```\n\n```sh\ntrue\n```\n")
    assert done.returncode == 1
    failed = [line for line in done.stderr.splitlines() if line.startswith("FAILED")]
    assert failed == [f"FAILED: {name}" for name in ("ruff check", "ruff format", "mypy", "import contracts")]


def test_ci_fails_when_the_tests_fail_and_still_runs_the_linters(repository: Path, tmp_path: Path) -> None:
    done = ci_run(repository, tmp_path, "## Quickstart\n\n```sh\ntrue\n```\n\n```sh\nfalse | true\n```\n")
    assert done.returncode == 1
    assert "FAILED: README: false | true" in done.stderr
    assert "FAILED: mypy" in done.stderr


def test_ci_fails_without_a_test_command_in_the_readme(repository: Path, tmp_path: Path) -> None:
    done = ci_run(repository, tmp_path, "## Quickstart\n\n```sh\ntrue\n```\n\n## Other\n\n```sh\ntrue\n```\n")
    assert done.returncode == 1
    assert "Quickstart" in done.stderr


def test_cis_script_can_be_executed(repository: Path) -> None:
    assert os.access(repository / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("document", ["cluster.yaml", "jobs/runtime_env.yaml"])  # pages: test_links.py
def test_the_files_that_a_document_names_exist(repository: Path, document: str) -> None:
    text = (repository / document).read_text()
    # "jobs/configs/..." stands for any file of that folder.
    named = {path.rstrip(".") for path in re.findall(r"(?<![\w/.-])(?:jobs|platform|tests)/[\w./-]*\w[\w./-]*", text)}
    assert any(path.startswith("jobs/") for path in named)
    # The one file that must not exist is named as a warning.
    assert [path for path in sorted(named - {"platform/__init__.py"}) if not (repository / path).exists()] == []
