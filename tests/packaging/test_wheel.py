"""A wheel that is built from the sources works by itself, in an empty folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, sources = (
        tmp_path_factory.mktemp("wheel"),
        tmp_path_factory.mktemp("sources"),
    )  # a build leaves files behind
    for name in ("platform", "jobs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "studies")
        shutil.copytree(repository / name, sources / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(repository / name, sources / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sources]
    subprocess.run(build, check=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


def test_a_wheel_has_what_the_sources_have(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    root = repository / "platform"
    wanted = {
        str(path.relative_to(root))
        for path in (root / "proxscore").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in (".py", ".j2", ".typed", ".yaml")
    }
    wanted |= {f"proxscore/configs/{path.name}" for path in (repository / "jobs" / "configs").glob("*.yaml")}
    assert wanted - names == set()
    assert not [name for name in names if name.startswith(("jobs/", "tests/"))]


def test_a_wheel_trains_in_an_empty_folder_by_the_name_of_a_configuration(wheel: Path, tmp_path: Path) -> None:
    """Unpacked apart from the sources, with the packages of this environment."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True, timeout=300)
    empty = tmp_path / "empty"
    empty.mkdir()
    script = f"import sys; sys.path.insert(0, {str(target)!r}); import proxscore; print(proxscore.__file__); "
    script += "from proxscore.commands.main import main; sys.exit(main(sys.argv[1:]))"
    job = ["train", "--config", "quickstart", "training.epochs=1", "training.workers=0", "name=first"]
    done = subprocess.run([sys.executable, "-c", script, *job], cwd=empty, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(target))
    assert (empty / "runs" / "first-proximal_score").is_dir()
