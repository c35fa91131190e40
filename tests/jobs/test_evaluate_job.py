"""jobs/evaluate.py: the metrics of a saved posterior are those that its training run reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributions import Normal

from proxscore import config as configuration
from proxscore.posterior import Posterior, predict
from proxscore.training.data.batches import evaluation_batches
from proxscore.vision.image_task import ImageTask

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main, Trained


@pytest.fixture
def score(evaluate: Main, trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run the job in an empty folder; returns its exit code and what its file of metrics says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: str) -> dict[str, Any]:
        assert evaluate([*arguments, "--output", "scores"]) == 0
        (record,) = (tmp_path / "scores").glob("*.json")
        assert record.with_name(f"{record.stem}_reliability.png").is_file()
        found: dict[str, Any] = json.loads(record.read_text())
        record.unlink()
        return found

    return run


def folder(trained: Trained, method: str) -> str:
    (run,) = (run for run in trained.result["runs"] if run["method"] == method)
    return str(Path(run["folder"]) / "posterior")


def reported(trained: Trained, method: str, variant: str) -> dict[str, float]:
    (run,) = (run for run in trained.result["runs"] if run["method"] == method)
    metrics: dict[str, float] = run["test"][variant]
    return metrics


def test_the_same_draws_give_the_metrics_that_training_reported(score, trained: Trained) -> None:  # type: ignore[no-untyped-def]
    posterior = folder(trained, "proximal_score")
    assert score(posterior)["metrics"] == pytest.approx(reported(trained, "proximal_score", "posterior"), abs=1e-7)
    assert score(posterior, "--draws", "0")["metrics"] == pytest.approx(
        reported(trained, "proximal_score", "mean"), abs=1e-7
    )
    point = score(folder(trained, "adamw"))["metrics"]
    assert point == pytest.approx(reported(trained, "adamw", "point"), abs=1e-7)


def test_another_number_of_draws_gives_other_metrics(score, trained: Trained) -> None:  # type: ignore[no-untyped-def]
    record = score(folder(trained, "proximal_score"), "--draws", "3")
    assert record["draws"] == 3
    assert record["metrics"]["nll"] != reported(trained, "proximal_score", "posterior")["nll"]


def test_draws_until_settled_and_a_single_pass_beside_them(
    score,  # type: ignore[no-untyped-def]
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As many draws as it took give what so many give; the single pass is told how far it is from them."""
    posterior = folder(trained, "proximal_score")
    found = score(posterior, "--draws", "auto", "--tolerance", "0.4", "--single-pass")
    taken = found["metrics"]
    assert found["draws"] == "auto"
    assert taken["draws/least"] == taken["draws/most"] == 16
    assert 0 < taken["draws/monte_carlo_error"] <= 0.4
    fixed = score(posterior, "--draws", "16")["metrics"]
    assert {key: taken[key] for key in fixed} == pytest.approx(fixed, abs=1e-6)
    assert taken["single_pass/total_variation"] <= taken["single_pass/total_variation_at_most"] <= 1
    assert taken["single_pass/nll"] == pytest.approx(taken["nll"], abs=1)
    assert "did not settle" not in capsys.readouterr().out
    score(posterior, "--draws", "auto", "--tolerance", "1e-9")
    assert "note       256 draws did not settle every row" in capsys.readouterr().out


def test_rows_that_may_have_been_trained_on_are_warned_of(
    score,  # type: ignore[no-untyped-def]
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
) -> None:
    posterior = folder(trained, "adamw")
    score(posterior)
    assert "is not that of training" not in capsys.readouterr().out
    score(posterior, "task.data.split_seed=1")
    assert "warning    this test split is not that of training" in capsys.readouterr().out


def test_a_run_in_mlflow_is_scored_as_its_folder(score, trained: Trained) -> None:  # type: ignore[no-untyped-def]
    (run,) = (run for run in trained.result["runs"] if run["method"] == "proximal_score")
    uri = f"tracking.uri=sqlite:///{trained.folder / 'mlflow.db'}"
    for source in (f"runs:/{run['mlflow_run_id']}", run["mlflow_run_id"]):
        assert score(source, uri)["metrics"] == pytest.approx(run["test"]["posterior"], abs=1e-7)


def test_another_split_is_scored_on_its_own_rows(score, trained: Trained) -> None:  # type: ignore[no-untyped-def]
    path = folder(trained, "proximal_score")
    record = score(path, "--split", "validation", "--draws", "2")
    # By hand: load, draw, count.
    task = ImageTask(configuration.parse(trained.result["config"]).task)
    posterior = Posterior.load(path)
    module = posterior.load_into(task.build_model())
    predictive = predict(module, lambda: evaluation_batches(task.data.validation, 64, 0, 1), posterior, draws=2, seed=0)
    right = (predictive.mean.argmax(1) == predictive.targets).double().mean().item()
    nll = -predictive.log_probabilities.gather(1, predictive.targets[:, None]).double().mean().item()
    assert record["split"] == "validation"
    assert record["metrics"]["accuracy"] == pytest.approx(right, abs=1e-6)
    assert record["metrics"]["nll"] == pytest.approx(nll, abs=1e-6)
    assert len(predictive.targets) == len(task.data.validation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no posterior there"),
        (["{folder}", "--draws", "-1"], "--draws is -1; it must be zero (mean weights) or positive"),
        (
            ["{folder}", "task.model.kwargs.width=8"],
            "posterior of another architecture: conv1.bias is (4,) there, (8,) in the model",
        ),
        (["{folder}", "task.data.kind=idx", "task.data.path=nowhere"], "nowhere: no such folder"),
        (["{folder}", "evaluation.draw=3"], "unknown key 'evaluation.draw'; did you mean 'draws'?"),
        (["runs:/" + "0" * 32, "tracking.uri={uri}"], "MLflow run " + "0" * 32),
    ],
    ids=["folder", "draws", "architecture", "data", "key", "run"],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    evaluate: Main,
    trained: Trained,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"folder": folder(trained, "proximal_score"), "uri": f"sqlite:///{trained.folder / 'mlflow.db'}"}
    assert evaluate([argument.format(**values) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_data_with_another_number_of_classes_are_refused(
    evaluate: Main,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for label in "abc":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(tmp_path / "data" / label / f"{number}.png")
    data = ["task.data.kind=image_folder", "task.data.path=data", "task.data.size=8", "task.data.channels=1"]
    assert evaluate([folder(trained, "proximal_score"), *data]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: task.data has 3 classes; the posterior was trained on 10")
    assert error.count("\n") == 1


def test_a_diagnosis_is_that_of_the_posterior_and_its_target(
    score,  # type: ignore[no-untyped-def]
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the very draws, by hand: the log joint minus the log density of the mean-field Gaussian."""
    place = folder(trained, "proximal_score")
    found = score(place, "--diagnose", "2")["diagnosis"]
    assert found["draws"] == 2
    assert "ELBO" in capsys.readouterr().out
    posterior, ratios = Posterior.load(place), []
    task = ImageTask(configuration.parse(trained.result["config"]).task)
    images, labels = task.data.train.__getitems__(list(range(len(task.data.train))))
    module = task.build_model().eval()
    posterior.load_into(module)
    for index in range(2):
        with posterior.use(module, index), torch.no_grad():
            ratio = -task.likelihood.nll(module(images), labels).double().mean() * len(labels)
        for name, weights in posterior.draw(index).items():
            q = Normal(posterior.mean[name], posterior.precision[name].rsqrt())
            ratio += (Normal(0.0, 1.0).log_prob(weights) - q.log_prob(weights)).double().sum()
        ratios.append(ratio.item())
    assert found["elbo"] == pytest.approx(sum(ratios) / 2, rel=1e-4)


def test_a_point_estimate_or_a_single_draw_has_no_diagnosis(
    evaluate: Main,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate([folder(trained, "adamw"), "--diagnose", "4"]) == 2
    assert evaluate([folder(trained, "proximal_score"), "--diagnose", "1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-2].startswith("error: --diagnose: the posterior was not trained by proximal_score")
    assert errors[-1] == "error: --diagnose is 1; it must be at least 2 draws"
