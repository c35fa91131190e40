"""jobs/train.py: what it prints, writes and leaves alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
from mlflow import MlflowClient

from proxscore import config as configuration
from proxscore.posterior import Posterior

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main, Trained


def test_the_printed_configuration_loads_back_to_the_same(
    train: Main, small: list[str], repository: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quickstart = repository / "jobs" / "configs" / "quickstart.yaml"
    assert train(["--config", str(quickstart), "--print-config", "training.epochs=3", "method.prior.scale=1e-2"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = configuration.load(tmp_path / "printed.yaml")
    assert printed == configuration.load(quickstart, ["training.epochs=3", "method.prior.scale=0.01"])
    assert printed.training.epochs == 3
    assert printed.training.workers == 2
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]


def dry(train: Main, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The lines of a dry run, by their first word."""
    assert train([*overrides, "--dry-run"]) == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        ("proximal_score", 6),
        ("adamw", 4),
    ],  # weights, gradient, mean, precision, score, squares; or weights, gradient, two moments
)
@pytest.mark.parametrize("workers", [0, 3])
def test_a_dry_run_counts_parameters_and_memory_and_leaves_nothing(
    train: Main,
    small: list[str],
    method: str,
    numbers: int,
    workers: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    kwargs: dict[str, Any] = {"patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4}
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, in_chans=1, num_classes=10, **kwargs)
    count = sum(parameter.numel() for parameter in model.parameters())
    scales = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 1 and name.endswith("weight"))
    total = numbers * count + (scales if method == "proximal_score" else 0)  # their prior means
    lines = dry(
        train,
        [
            *small,
            *("task.model.name=vit_tiny_patch16_224", f"task.model.kwargs={kwargs}"),
            *(f"method.kind={method}", f"training.workers={workers}", "training.epochs=6", "training.batch_size=60"),
        ],
        capsys,
    )
    assert f" {count:,} parameters, {count:,} trained" in lines["model"]
    assert "'train': 200" in lines["data"]
    assert f"{total / count:.2f} numbers per parameter" in lines["method"]
    assert f" {4 * total / max(workers, 1) / 2**20:.1f} MiB per worker on {max(workers, 1)} worker" in lines["memory"]
    steps = 6 * 4  # 60 + 60 + 60 + 20 rows
    assert f" {steps} steps, {steps} gradient evaluations of 60 rows" in lines["work"]
    assert " of training; " in lines["estimate"]
    assert "cost.hourly.cpu" in lines["price"]
    assert not list(tmp_path.iterdir())  # no run, no database


def test_the_result_file_holds_configuration_and_metrics_of_both_runs(trained: Trained) -> None:
    result = trained.result
    config = configuration.parse(result["config"])
    assert config.model_copy(update={"training": config.training.model_copy(update={"storage": "runs"})}) == (
        configuration.load(overrides=trained.overrides)
    )
    baseline, posterior = result["runs"]
    assert (baseline["label"], baseline["method"]) == ("small-adamw", "adamw")
    assert (posterior["label"], posterior["method"]) == ("small-proximal_score", "proximal_score")
    assert set(baseline["test"]) == {"point"}
    assert set(posterior["test"]) == {"posterior", "mean"}
    assert baseline["evaluations"] == posterior["evaluations"] == posterior["steps"] == 8
    client = MlflowClient(config.tracking.uri)
    for run in (baseline, posterior):
        recorded = client.get_run(run["mlflow_run_id"])
        assert recorded.info.status == "FINISHED"
        main = run["test"]["posterior" if "posterior" in run["test"] else "point"]
        assert {f"test/{name}": value for name, value in main.items()}.items() <= recorded.data.metrics.items()
        assert (
            sum(t.numel() for t in Posterior.load(Path(run["folder"]) / "posterior").mean.values()) == run["parameters"]
        )


def test_a_run_in_a_process_of_its_own_shows_progress_a_table_and_where_to_look(
    small: list[str], repository: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "jobs" / "train.py"), *small, "name=own", "baseline.kind=adamw"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "own-adamw · step " in done.stdout
    assert "own-proximal_score · step " in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "train      reading the defaults"
    table = next(number for number, line in enumerate(lines) if line.startswith("own: test split"))
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[table + 3 : table + 6]]
    assert [row[0] for row in rows] == ["AdamW", "posterior mean", "posterior"]
    assert max(len(line) for line in lines[table : table + 6]) <= 80
    paths = [tmp_path / line.split()[1] for line in lines if line.startswith("figure ")]
    assert len(paths) == 3
    assert all(path.is_file() for path in paths)
    assert f"ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db" in done.stdout.replace("\n", "")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "mlflow.db", "mlartifacts"}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
    found = {run.data.tags["name"]: run for run in runs}
    trained_run = found["own-proximal_score"].info.run_id
    for row, name, prefix in zip(
        rows, ("own-adamw", "own-proximal_score", "own-proximal_score"), ("test", "test_mean", "test"), strict=True
    ):
        metrics = found[name].data.metrics
        assert row[1:5] == [f"{metrics[f'{prefix}/{key}']:.4f}" for key in ("accuracy", "nll", "ece", "brier")]
    after = lines[lines.index("What to do next:") + 1 :]
    assert [line.split()[0] for line in after] == ["evaluate", "report", "predict", "serve", "browse", "#"]
    page = f"/#/experiments/{runs[0].info.experiment_id}/runs/{trained_run}?workflowType=machine_learning"
    assert after[-1].split() == ["#", "then", "open", f"http://127.0.0.1:5000{page}"]
    # As a user pastes it into the same shell.
    pasted = subprocess.run(
        after[0].split(maxsplit=1)[1], shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert pasted.returncode == 0, pasted.stderr
    assert "digits, test split, 64 draws" in pasted.stdout


def test_a_posterior_that_the_penalty_held_still_says_so_wherever_it_is_shown(
    train: Main, small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train([*small, "method.penalty.precision=1e6", "method.effective_data_size=100000", "name=held"]) == 0
    out = capsys.readouterr().out
    lines = [line.removeprefix("verdict    ") for line in out.splitlines() if line.startswith("verdict ")]
    assert lines[0].startswith("still moving (temperature 1, effective data size 100,000 (")
    assert lines[0].endswith("a cold posterior's intervals are not credible intervals")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
    assert run.data.tags["verdict"] == "still moving"
    assert {"verdict/k", "verdict/nll_mean", "verdict/drift_mean_sd", "validation/nll_draw"} <= set(run.data.metrics)
    (folder,) = {path.parent for path in (tmp_path / "runs").rglob("posterior.json")}
    posterior = Posterior.load(folder)
    assert posterior.verdict is not None
    assert posterior.verdict.lines() == lines
    assert "still moving" in repr(posterior)
    assert posterior.told()[1].startswith("warning    this posterior is still moving: ")


def test_the_configuration_of_a_recorded_run_starts_a_new_one(
    train: Main, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"tracking.uri=sqlite:///{trained.folder / 'mlflow.db'}"
    run = trained.result["runs"][0]["mlflow_run_id"]
    assert train(["--config", f"mlflow:{run}", uri, "training.epochs=3", "--print-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = configuration.load(tmp_path / "printed.yaml")
    recorded = configuration.parse(trained.result["config"])
    expected = {"name": None, "training": recorded.training.model_copy(update={"epochs": 3.0})}
    assert printed == recorded.model_copy(update=expected)
    assert train(["--config", "mlflow:nowhere", uri]) == 2
    assert "MLflow run nowhere at sqlite:" in capsys.readouterr().err
