"""The import contracts of pyproject.toml break when they should: checked on an empty package with one bad import."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = [
    "inference",
    "posterior",
    "calibration",
    "tasks",
    "methods",
    "vision",
    "forecasting",
    "tracking",
    "training",
    "experiments",
]


def lint(repository: Path, folder: Path, imports: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Check proxscore with these imports ({part: statement}) and no others, and the real pyproject.toml."""
    shutil.copy(repository / "pyproject.toml", folder)
    package = folder / "platform" / "proxscore"
    for part in PARTS:
        (package / part).mkdir(parents=True)
        (package / part / "__init__.py").write_text(imports.get(part, "") + "\n")
    (package / "__init__.py").touch()
    for module in ("config.py", "storage.py"):
        (package / module).touch()
    for part in imports.keys() - set(PARTS):
        (package / f"{part}.py").write_text(imports[part] + "\n")
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "platform")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def broken(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The beginnings of the names of the broken contracts."""
    return re.findall(r"^(Imports|The method|)\b.* BROKEN", done.stdout, flags=re.MULTILINE)


def test_imports_downwards_are_kept(repository: Path, tmp_path: Path) -> None:
    done = lint(
        repository,
        tmp_path,
        {
            "inference": "import torch\nfrom proxscore.config import __name__",
            "posterior": "import proxscore.inference",
            "calibration": "import proxscore.posterior, proxscore.inference",
            "vision": "import proxscore.calibration, ray",
            "tracking": "import proxscore.posterior, mlflow",
            "training": "import proxscore.vision, proxscore.tracking, proxscore.methods, ray",
            "experiments": "import proxscore.training, proxscore.tracking, ray",
        },
    )
    assert done.returncode == 0, done.stdout
    assert broken(done) == []


@pytest.mark.parametrize(
    ("part", "statement", "contract"),
    [
        ("inference", "import proxscore.posterior", "Imports"),
        ("inference", "def late():\n    import proxscore.training", "Imports"),
        ("calibration", "from proxscore.vision import x", "Imports"),
        ("vision", "import proxscore.forecasting", "Imports"),
        ("methods", "import proxscore.tracking", "Imports"),
        ("tracking", "import proxscore.training", "Imports"),
        ("training", "import proxscore.experiments", "Imports"),
        ("somewhere_else", "", "Imports"),
        ("inference", "import ray", "The method"),
        ("posterior", "def late():\n    from mlflow.pyfunc import PythonModel", "The method"),
        ("calibration", "import ray.train", "The method"),
    ],
)
def test_an_import_against_the_direction_breaks_its_contract(
    repository: Path, tmp_path: Path, part: str, statement: str, contract: str
) -> None:
    done = lint(repository, tmp_path, {part: statement})
    assert done.returncode != 0
    assert broken(done) == [contract], done.stdout
