"""What an installation may do without is asked for in one line; and the method itself does without all but torch."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from proxscore.commands.main import main
from proxscore.config.extras import EXTRAS

VIT = ["task.model.kwargs={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}"]
COMMANDS = {
    "gluonts": (["train", "task.kind=forecasting"], "task.kind=forecasting needs the package gluonts", "forecast"),
    "lightning": (["train", "task.kind=forecasting"], "task.kind=forecasting needs the package lightning", "forecast"),
    "optuna": (["tune", "task.data.kind=digits"], "a search of settings needs the package optuna", "tune"),
    "fastapi": (["serve", "posterior"], "serving needs the package fastapi", "serve"),
    "peft": (
        ["train", "task.data.kind=digits", *VIT, "task.model.lora.rank=2", "training.workers=0"],
        "task.model.lora needs the package peft",
        "lora",
    ),
    "ivon": (
        ["train", "task.data.kind=digits", *VIT, "method.kind=ivon", "training.workers=0", "--dry-run"],
        "method.kind=ivon needs the package ivon",
        "peers",
    ),
}


@pytest.mark.parametrize("absent", COMMANDS)
def test_a_package_that_is_absent_is_one_line_that_installs_it(
    absent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments, reason, extra = COMMANDS[absent]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ours = ("proxscore.experiments.sweep", "proxscore.methods.ivon_optimizer")
    for name in [name for name in sys.modules if name.startswith((*ours, f"{absent}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert errors == [f"error: {reason}: pip install 'proxscore[{extra}]'"]


def declared(repository: Path) -> dict[str, list[str]]:
    extras: dict[str, list[str]] = tomllib.loads((repository / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return extras


def test_every_module_of_an_extra_is_brought_by_it(repository: Path) -> None:
    distributions = packages_distributions()
    found = declared(repository)
    assert set(found) == {*EXTRAS, "all", "test"}
    for extra, modules in EXTRAS.items():
        names = {canonicalize_name(Requirement(text).name) for text in found[extra]}
        if extra == "serve":  # Ray's own extra has what its server needs
            names |= {canonicalize_name(Requirement(text).name) for text in requires("ray") or [] if "serve" in text}
        for module in modules:
            if module in distributions:  # whoever runs this may do without
                assert {canonicalize_name(name) for name in distributions[module]} & names, module


def test_all_is_every_extra_and_the_tests_have_them_all(repository: Path) -> None:
    found = declared(repository)
    (everything,) = found["all"]
    assert Requirement(everything).extras == set(EXTRAS)
    assert "proxscore[all]" in found["test"]


def of_torch(name: str = "torch", seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """A distribution, and what it depends on, as far as it is installed."""
    yield canonicalize_name(name)
    try:
        needed = [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:
        return
    for requirement in needed:
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and canonicalize_name(requirement.name) not in seen:
            yield from of_torch(requirement.name, seen | {canonicalize_name(name)})


ALONE = """
import sys
sys.modules.update(dict.fromkeys({refused!r}))  # as if they were not there
import torch
from proxscore.inference import {names}
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
dataset = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.randint(0, 2, (64,)))
loader = torch.utils.data.DataLoader(dataset, 16)
{loop}
print("trained", optimizer.state_dict()["state"][0]["mean"].shape)
"""


def test_the_method_needs_torch_alone_for_the_loop_of_the_readme(repository: Path, tmp_path: Path) -> None:
    """Everything else that is installed here, and is no part of torch, is refused on import."""
    from proxscore import inference

    text = (repository / "README.md").read_text()
    block = re.search(r"## In your own loop.*?```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    loop = block[1].partition("\nposterior = ")[0]
    loop = "\n".join(line for line in loop.splitlines() if not line.startswith("from proxscore.posterior"))
    assert "optimizer.step()" in loop
    allowed = {*of_torch(), "numpy", "proxscore"}
    installed = packages_distributions().items()
    refused = sorted(
        module for module, owners in installed if not {canonicalize_name(name) for name in owners} & allowed
    )
    assert {"pydantic", "yaml", "psutil", "safetensors", "ray", "mlflow", "timm"} <= set(refused)
    script = ALONE.format(refused=refused, names=", ".join(inference.__all__), loop=loop)
    (tmp_path / "alone.py").write_text(script)
    done = subprocess.run([sys.executable, "alone.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trained")
