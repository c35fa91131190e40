"""The study of fine-tuning on small stand-ins in the official layouts: its comparison, its splits by seed, and its table."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from official_sets import PHOTOGRAPHS, cifar, pets
from safetensors.torch import save_file
from torchvision.datasets import Flowers102

from proxscore.config import ConfigError
from proxscore.experiments.comparison import cell as cells
from proxscore.experiments.comparison import settings
from proxscore.experiments.comparison.plan import Plan, plan
from proxscore.vision.data import load_images
from proxscore.vision.sources.torchvision_sets import official_rows

STUDY = Path(__file__).resolve().parents[2] / "jobs" / "studies" / "finetune"
SMALL = ["task.model.pretrained=false", "task.data.size=32", "training.device=cpu", "budget=8", "evaluation.draws=2"]


@pytest.fixture(autouse=True)
def _official_hashes() -> Iterator[None]:
    before = Flowers102._file_dict
    yield
    Flowers102._file_dict = before


def folder_of(name: str, root: Path) -> Path:
    """A stand-in of a data set."""
    PHOTOGRAPHS[name](root) if name in PHOTOGRAPHS else cifar(root, name)
    return root


def changes(data: str, path: Path, network: str, weights: Path) -> list[str]:
    of_network = [f"task.model.name={network}", f"task.model.weights={weights}"]
    return [*SMALL, f"name=finetune-{data}", f"task.data.name={data}", f"task.data.path={path}", *of_network]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """timm's network of a name with a classifier of 1,000 classes, as a file."""
    folder = tmp_path_factory.mktemp("weights")

    def stored(network: str) -> Path:
        path = folder / f"{network}.safetensors"
        if not path.exists():
            save_file(timm.create_model(network).state_dict(), path)
        return path

    return stored


def job(repository: Path, arguments: list[str]) -> int:
    status: int = runpy.run_path(str(repository / "jobs" / "compare.py"))["main"](arguments)
    return status


def table(arguments: list[str]) -> int:
    status: int = runpy.run_path(str(STUDY / "table.py"))["main"](arguments)
    return status


@pytest.mark.parametrize(
    ("data", "network"),
    [(name, "test_resnet") for name in (*PHOTOGRAPHS, "cifar10", "cifar100")] + [("pets", "test_vit")],
)
def test_every_method_takes_each_data_set_and_both_kinds_of_networks(
    data: str, network: str, tmp_path: Path, weights: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder_of(data, tmp_path / "data")
    made = plan(*settings.load(STUDY / "compare.yaml", changes(data, path, network, weights(network))))
    assert len(made.contenders) == 8
    for contender in made.contenders:
        method = contender.configs["default"].method
        section: Any = method.of if hasattr(method, "of") else method
        assert section.lr_scales == {"body": 0.01}
        if hasattr(method, "prior"):
            assert method.prior.mean == "initial"
        seeds = [made.cell(contender, "default", seed).config.task for seed in made.seeds]
        assert [task.data.split_seed for task in seeds] == made.seeds  # type: ignore[attr-defined]
        assert len({contender.budget.evaluations for contender in made.contenders}) == 1


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, weights: Callable[[str], Path]) -> Iterator[tuple[Plan, Path]]:
    """A point estimate and ours, from two seeds each, trained in this process."""
    folder = tmp_path_factory.mktemp("compared")
    pets(folder / "data")
    tree = yaml.safe_load((STUDY / "compare.yaml").read_text())
    tree["methods"] = {name: tree["methods"][name] for name in ("SGD", "proximal score")}
    tree["base"]["tracking"] = {"uri": f"sqlite:///{folder / 'mlflow.db'}"}
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump(tree | {"seeds": [0, 1]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        arguments = changes("pets", folder / "data", "test_resnet", weights("test_resnet"))
        made = plan(*settings.load(file, [*arguments, "budget=2"]))
        records = [cells.run(cell, "parent") for cell in made.first()]
        assert [record["status"] for record in records] == 4 * ["finished"], records
        assert job(STUDY.parents[2], ["--config", str(file), *arguments, "budget=2"]) == 0  # all cells are finished
        yield made, folder


@pytest.mark.slow
def test_each_seed_has_its_own_validation_half_and_all_the_official_test(compared: tuple[Plan, Path]) -> None:
    made, _ = compared
    told = {
        (cell.method, cell.seed): json.loads((cell.folder / "cell.json").read_text())["splits"] for cell in made.first()
    }
    for seed in made.seeds:
        assert told["SGD", seed] == told["proximal score", seed]
        assert told["SGD", seed]["counts"] == {"train": 12, "validation": 12, "test": 12}
        data = made.cell(made.contenders[0], "default", seed).config.task.data  # type: ignore[attr-defined]
        assert load_images(data).splits == told["SGD", seed]
        described = json.loads(
            (made.folder / "sgd" / "default" / str(seed) / "posterior" / "posterior.json").read_text()
        )
        assert described["data"]["splits"]["sha256"] == told["SGD", seed]["sha256"]
    first, second = (told["SGD", seed]["sha256"] for seed in made.seeds)
    assert first["train"] != second["train"]
    assert first["validation"] != second["validation"]
    assert first["test"] == second["test"]
    assert "2 seed(s), each with a split of the data of its own" in (made.folder / "report/comparison.md").read_text()


@pytest.mark.slow
def test_the_studys_table_is_of_the_predictions_of_the_cells(
    compared: tuple[Plan, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = compared
    assert table([str(made.folder), "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    with (tmp_path / "finetune.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert [*rows] == ["SGD", "proximal score", "Kim, arXiv 2602.05873"]
    assert rows["Kim, arXiv 2602.05873"]["error, %"] == "7.75"
    assert {row["data set"] for row in rows.values()} == {"pets"}
    for method in ("SGD", "proximal score"):
        errors, briers = [], []
        for seed in (0, 1):
            (place,) = made.folder.glob(f"{method.replace(' ', '-').lower()}/default/{seed}/predictions.npz")
            held = np.load(place)
            probabilities, targets = np.exp(held["log_probabilities"].astype(float)), held["targets"]
            errors.append(100 * (probabilities.argmax(1) != targets).mean())
            briers.append(((probabilities - np.eye(3)[targets]) ** 2).sum(1).mean())
        assert rows[method]["error, %"] == f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}"
        assert rows[method]["Brier"] == f"{np.mean(briers):.3f} ± {np.std(briers, ddof=1):.3f}"
        assert float(rows[method]["ECE, all classes"].split()[0]) > 0
        assert rows[method]["evaluations"].startswith("2")
    assert "24 images of training and validation and 12 of the test; the official data set has 3,680 and 3,669" in shown


@pytest.mark.slow
def test_the_studys_table_says_what_was_judged_without_its_draws(
    compared: tuple[Plan, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = compared
    copied = shutil.copytree(made.folder, tmp_path / "copied")
    for method in ("sgd", "proximal-score"):
        file = copied / method / "default" / "1" / "cell.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"forward_passes": 1}))
    assert table([str(copied), "--output", str(tmp_path)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "judged as a point estimate" in line]
    assert said == ["| pets, test_resnet, proximal score, seed 1: judged as a point estimate |"]


def test_what_is_no_finished_comparison_is_refused(
    compared: tuple[Plan, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = compared
    again = tmp_path / "again"
    again.symlink_to(made.folder)
    for folders, reason in (
        ([tmp_path], f"{tmp_path}: holds no report/comparison.csv"),
        ([made.folder, again], f"{again} and {made.folder} both have 'SGD' on pets with test_resnet"),
    ):
        assert table([*map(str, folders), "--output", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.startswith(f"error: {reason}")
    assert not (tmp_path / "out").exists()


def test_a_split_by_seed_needs_data_that_a_seed_splits_and_no_other_seed() -> None:
    tree = yaml.safe_load((STUDY / "compare.yaml").read_text())
    tree["base"]["task"]["data"]["split_seed"] = 3
    with pytest.raises(ConfigError, match=r"base\.task\.data\.split_seed comes from 'seeds' with split_by_seed"):
        settings.of(tree, "study")
    tree["base"]["task"] = {"kind": "forecasting", "data": {"kind": "table", "path": "a.csv"}, "horizon": 2}
    with pytest.raises(ConfigError, match="split_by_seed: data of kind table are not split by a seed"):
        settings.of(tree, "study")


def test_official_counts() -> None:
    assert official_rows("pets") == (3680, 3669)
    assert official_rows("cifar100") == (50_000, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
def test_all_methods_run_to_a_table_and_a_figure(
    network: str,
    ray_local: None,
    repository: Path,
    tmp_path: Path,
    weights: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    pets(tmp_path / "data")
    arguments = [*changes("pets", tmp_path / "data", network, weights(network)), "seeds=[0]"]
    assert job(repository, ["--config", str(STUDY / "compare.yaml"), *arguments]) == 0
    assert {file.name for file in (tmp_path / "runs/finetune-pets/report").iterdir()} >= {
        "comparison.md",
        "comparison.png",
    }
    assert table(["runs/finetune-pets"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| pets | {network} | ")]
    assert len(shown) == 8
    assert not any("diverged" in line or "of 1" in line for line in shown)
