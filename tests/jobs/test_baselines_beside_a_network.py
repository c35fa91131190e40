"""A network that is behind a method without training is said to be, wherever its results are: real runs on electricity demand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import script
from mlflow import MlflowClient

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main

pytest.importorskip("pmdarima")
DEMAND = [
    *("task.kind=forecasting", "task.data={kind: taylor, test_windows: 3, validation_windows: 3}"),
    *(
        "task.context=48",
        "task.train_stride=40",
        "task.model={name: SimpleFeedForward, kwargs: {hidden_dimensions: [8]}}",
    ),
    *("training.epochs=1", "training.workers=0", "training.device=cpu", "evaluation.draws=2", "baseline=null"),
    *("method.kind=adamw", "tracking.log_model=false"),
]


@pytest.fixture
def train(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    monkeypatch.chdir(tmp_path)
    run = script(repository, "train")
    return lambda more: run([*DEMAND, "tracking.uri=sqlite:///mlflow.db", "--result", "result.json", *more])


def result() -> dict[str, Any]:
    (run,) = json.loads(Path("result.json").read_text())["runs"]
    return dict(run)


def test_a_network_that_is_behind_is_said_to_be(train: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["name=demand"]) == 0
    output, run = capsys.readouterr().out, result()
    found = run["baseline"]
    assert found["name"] == next(iter(found["validation"])) == "linear AR"
    assert list(found["validation"].values()) == sorted(found["validation"].values())
    assert len(found["validation"]) == 10
    assert found["notes"] == []
    own, other = run["test"]["point"]["crps"], found["test"]["crps"]
    assert own > 1.2 * other
    line = re.search(r"^baseline   AdamW: (behind linear AR: CRPS [\d,.]+ against ([\d.]+))$", output, re.MULTILINE)
    assert line is not None
    assert float(line[2]) == pytest.approx(other, rel=1e-3)
    assert re.search(rf"^linear AR \(no training\) +{other:.4f} ", output, re.MULTILINE)
    recorded = MlflowClient("sqlite:///mlflow.db").get_run(run["mlflow_run_id"]).data
    assert recorded.metrics["baseline/crps"] == pytest.approx(other)
    assert recorded.tags["baseline"] == line[1]
    assert f"Beside methods that need no training it is **{line[1]}**." in recorded.tags["mlflow.note.content"]
    assert train(["name=demand"]) == 0  # it is finished, and says it again
    assert line[0] in capsys.readouterr().out
    assert result()["baseline"] == found
    assert (
        train(["name=demand", "task.baselines=[theta]"]) == 2
    )  # what it was shown beside is what it would be said to be
    said = "error: run 'demand' is finished, with task.baselines=None, now it is ['theta']: take another name\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_baseline_that_fails_hides_no_result(
    train: Main, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxscore.forecasting.baselines import BASELINES
    from proxscore.forecasting.evaluator import ForecastEvaluator

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory\nfor this")

    monkeypatch.setattr(BASELINES["drift"], "fit", fail)
    assert train(["name=one", "task.baselines=[naive,drift]"]) == 0
    assert result()["baseline"]["name"] == "naive"
    assert "baselines  drift failed: no memory for this\n" in capsys.readouterr().out
    monkeypatch.setattr(ForecastEvaluator, "best_baseline", fail)
    assert train(["name=all"]) == 0
    assert "crps" in result()["test"]["point"]
    assert "baselines  failed: no memory for this\n" in capsys.readouterr().out


def test_none_is_asked_for(train: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["name=none", "task.baselines=[]"]) == 0
    assert "baseline" not in result()
    assert "baseline" not in capsys.readouterr().out
