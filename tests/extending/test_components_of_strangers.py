"""A method, a family, a source of images and a task of another package, one file each, train by configuration.

The files are the examples of the pages that say how to add a component, as they stand there.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PACKAGE = Path(__file__).parents[2] / "platform" / "proxscore"
#: Page -> the module that its entry point names.
PAGES = {
    "methods": "sign_sgd",
    "inference/families": "isotropic",
    "vision/sources": "stripes",
    "tasks": "regression",
}
TRAINING = {"batch_size": 20, "workers": 0, "device": "cpu", "validate_every": 30}
TIMEOUT = 900  # against hangs alone


def block(page: str, language: str) -> str:
    """The one block of code of a language on a page."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", (PACKAGE / page / "README.md").read_text(), re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks as an installed package does: modules, and their entry points."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "my_package").mkdir()
    points = []
    for page, module in PAGES.items():
        (folder / "my_package" / f"{module}.py").write_text(block(page, "python"))
        group, line = re.findall(r'entry-points\."(.*?)"\]\n(.*)\n', block(page, "toml"))[0]
        points.append(f"[{group}]\n{line.replace(chr(34), '')}\n")
    about = folder / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join(points))
    return folder


def run(strangers: Path, folder: Path, job: str, *arguments: str) -> str:
    path = os.pathsep.join([str(strangers), str(PACKAGE.parent)])
    made = subprocess.run(
        [sys.executable, str(PACKAGE.parents[1] / "jobs" / f"{job}.py"), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout


def train(strangers: Path, folder: Path, **tree: Any) -> dict[str, Any]:
    (folder / "job.yaml").write_text(yaml.safe_dump({"name": "strange", **tree}))
    run(strangers, folder, "train", "--config", "job.yaml", "--result", "result.json")
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())["runs"][0]
    return found


def test_a_method_trains_on_images_of_a_source(strangers: Path, tmp_path: Path) -> None:
    cnn = {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}}
    found = train(
        strangers,
        tmp_path,
        task={"model": cnn, "data": {"kind": "stripes", "count": 300}},
        method={"kind": "sign_sgd", "lr": 0.005},
        training=TRAINING | {"epochs": 6},
    )
    assert found["method"] == "sign_sgd"
    assert found["test"]["point"]["accuracy"] > 0.95  # of two kinds of stripes, by chance 0.5
    assert set(found["test"]) == {"point"}  # fixed weights: one prediction


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_family_describes_the_network_of_a_task_here_or_on_rays_workers_and_is_loaded_again(
    workers: int, strangers: Path, tmp_path: Path
) -> None:
    found = train(
        strangers,
        tmp_path,
        task={"kind": "regression", "model": {"width": 8}},
        method={"family": {"kind": "isotropic"}, "solver": {"inner_steps": 2, "lr": 0.1}, "initial_noise": 0.3},
        training=TRAINING | {"epochs": 30, "workers": workers},
    )
    # The targets have unit variance: with noise of 0.7, their mean alone has an NLL of log(0.7 sqrt(2 pi)) + 1 / (2 0.49).
    nll = found["test"]["posterior"]["nll"]
    assert nll < 1.3 < math.log(0.7 * math.sqrt(2 * math.pi)) + 1 / 0.98
    posterior = str(Path(found["folder"]) / "posterior")
    assert json.loads((Path(posterior) / "posterior.json").read_text())["joint"][0]["kind"] == "isotropic"
    run(strangers, tmp_path, "evaluate", posterior, "--output", "scores")
    (scores,) = (tmp_path / "scores").glob("*.json")
    assert json.loads(scores.read_text())["metrics"]["nll"] == pytest.approx(nll, abs=0.1)  # of other draws


def test_where_the_package_is_not_installed_its_kinds_are_not_known(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(PACKAGE.parents[1] / "jobs" / "train.py"), "method.kind=sign_sgd"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert made.returncode == 2
    assert "method.kind is 'sign_sgd'; it must be one of 'proximal_score', 'adamw'" in made.stderr
