"""The scripts of the study of large networks, on tiny ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_gpu_script_measures_a_tiny_network_on_the_cpu_without_ray_and_mlflow(
    repository: Path, tmp_path: Path
) -> None:
    script = (
        "import runpy, sys\n"
        "for name in ('ray', 'mlflow', 'gluonts'): sys.modules[name] = None\n"
        f"sys.argv = ['gpu.py', '--quick', '--device', 'cpu', '--output', {str(tmp_path / 'gpu.json')!r}]\n"
        f"runpy.run_path({str(repository / 'jobs' / 'studies' / 'real_size' / 'gpu.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["networks"]
    assert row["same_draw"] is True
    assert row["file_gib"] * 2**30 == pytest.approx(8 * row["parameters"], rel=0.1)  # means and precisions in float32
    assert "| test_vit | " in done.stdout


@pytest.mark.slow
def test_the_study_trains_kills_resumes_saves_and_judges_a_tiny_network(repository: Path, tmp_path: Path) -> None:
    script = str(repository / "jobs" / "studies" / "real_size" / "run.py")
    done = subprocess.run(
        [sys.executable, script, "--quick", "--output", "found"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "found" / "rows-quick.jsonl").read_text().splitlines()
    row = json.loads(line)["row"]
    assert row["goes on with"] == 2
    assert row["same loss"]
    assert row["same metrics"]
    assert len(row["files"]) == 2
    assert sum(row["files"]) == pytest.approx(row["loaded"]["bytes"], rel=0.1)
