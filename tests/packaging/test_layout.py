"""The source root is a folder called platform, as is a module of the standard library: neither may hide the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import RayHead

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
ALLOWED_TOP_LEVEL = {
    *("pyproject.toml", "README.md", "LICENSE", "cluster.yaml", ".gitignore", ".pre-commit-config.yaml"),
    *(".ci", "platform", "jobs", "tests"),
}

# What a driver and a Ray task see, as a line of JSON.
REPORT = """
import json, sys, ray

def where():
    import os, platform
    import proxscore
    platform.python_version()
    return {"platform": platform.__file__, "proxscore": proxscore.__file__, "cwd": os.getcwd()}

ray.init(log_to_driver=False)
print("REPORT", json.dumps({"driver": where(), "worker": ray.get(ray.remote(where).remote(), timeout=60)}))
"""


def report_in(output: str) -> dict[str, dict[str, str]]:
    lines = [line.split("REPORT ", 1)[1] for line in output.splitlines() if "REPORT " in line]
    assert len(lines) == 1, output
    return json.loads(lines[0])


def test_the_source_root_is_no_package(repository: Path) -> None:
    assert (repository / "platform" / "proxscore" / "__init__.py").is_file()
    assert not (repository / "platform" / "__init__.py").exists()


def test_a_process_in_the_repository_root_imports_the_standard_librarys_platform(repository: Path) -> None:
    # -c puts the working directory first on sys.path, ahead of the standard library.
    code = "import platform, proxscore; platform.python_version(); print(platform.__file__); print(proxscore.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=60, check=True
    )
    module, package = (Path(line).resolve() for line in done.stdout.split())
    assert module == STANDARD_LIBRARY / "platform.py"
    assert package == repository / "platform" / "proxscore" / "__init__.py"


def test_driver_and_worker_started_in_the_repository_root_import_the_standard_librarys_platform(
    repository: Path, ray_head: RayHead
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORT], cwd=repository, env=ray_head.env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for seen in report_in(done.stdout).values():
        assert Path(seen["platform"]).resolve() == STANDARD_LIBRARY / "platform.py"
        assert Path(seen["proxscore"]).resolve() == repository / "platform" / "proxscore" / "__init__.py"


def test_a_submitted_job_and_its_workers_import_the_standard_librarys_platform_and_the_uploaded_package(
    repository: Path, ray_head: RayHead, tmp_path: Path
) -> None:
    # A copy, so that the uploaded package cannot be confused with an installed one.
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "platform").mkdir()
    (checkout / "platform" / "proxscore").mkdir()
    (checkout / "platform" / "proxscore" / "__init__.py").write_text("")
    (checkout / "jobs").mkdir()
    (checkout / "jobs" / "report.py").write_text(REPORT)
    done = submit(ray_head, checkout, repository / "jobs" / "runtime_env.yaml", "python", "jobs/report.py")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = report_in(done.stdout)
    assert set(seen) == {"driver", "worker"}
    for process in seen.values():
        assert Path(process["platform"]).resolve() == STANDARD_LIBRARY / "platform.py"
        uploaded = Path(process["proxscore"])
        assert uploaded.is_absolute()
        assert "working_dir_files" in uploaded.parts
        assert uploaded.parts[-3:] == ("platform", "proxscore", "__init__.py")


def test_the_head_refuses_a_client_without_its_token(ray_head: RayHead) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{ray_head.dashboard}/api/jobs/", timeout=30)
    assert refusal.value.code == 401
    refusal.value.close()


def submit(head: RayHead, folder: Path, runtime_env: Path, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    """Submit ``folder`` as cluster.yaml's head comment says, and wait for the end of the job."""
    command = ["ray", "job", "submit", "--working-dir", ".", "--runtime-env", str(runtime_env), "--", *entrypoint]
    return subprocess.run(command, cwd=folder, env=head.env, capture_output=True, text=True, timeout=120)


def test_the_runtime_environment_needs_no_network(repository: Path) -> None:
    settings = yaml.safe_load((repository / "jobs" / "runtime_env.yaml").read_text())
    assert set(settings) == {"env_vars", "excludes"}  # nothing to install, no image, no remote package
    assert settings["env_vars"] == {"PYTHONPATH": "platform"}
    assert all(not os.path.isabs(value) for value in settings["env_vars"].values())


def test_the_top_level_holds_only_what_the_architecture_names(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project cannot be told from what lies beside it")
    # Tracked, and what would be tracked: new files that .gitignore does not name.
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    top_level = {Path(line).parts[0] for line in listing.stdout.splitlines()}
    assert {"pyproject.toml", "README.md", "platform", "jobs", "tests"} <= top_level
    assert top_level <= ALLOWED_TOP_LEVEL
