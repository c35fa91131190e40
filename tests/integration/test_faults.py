"""Faults of a real cluster of a head and two nodes: the script that measures them, once for each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", ["worker", "node", "drain", "driver", "elastic"])
def test_a_run_outlives_the_fault_with_nothing_lost_or_twice(fault: str, repository: Path, tmp_path: Path) -> None:
    """The script compares with an undisturbed run; see its docstring for what it demands."""
    command = [
        sys.executable,
        str(repository / "jobs" / "studies" / "faults" / "run.py"),
        "--times",
        "2",
        "--epochs",
        "30",
        "--faults",
        fault,
    ]
    done = subprocess.run([*command, "--output", str(tmp_path / "trials.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = json.loads((tmp_path / "trials.json").read_text())
    assert trial["problems"] == []
    assert len(trial["faults"]) == 2
