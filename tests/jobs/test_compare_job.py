"""jobs/compare.py: equal budgets, one evaluation, cells that are not repeated, and refusals before the first cell."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from conftest import script
from mlflow import MlflowClient

from proxscore.calibration import expected_calibration_error
from proxscore.config import ConfigError
from proxscore.experiments.budget import equal_budget
from proxscore.experiments.comparison import cell as cells
from proxscore.experiments.comparison import driver, records, study, table
from proxscore.experiments.comparison.plan import Plan, plan
from proxscore.experiments.comparison.settings import load
from proxscore.methods.ensemble import EnsembleConfig
from proxscore.methods.laplace import LaplaceConfig
from proxscore.methods.proximal_score import ProximalScoreConfig
from proxscore.training.loop.observer import forgets_peak

if TYPE_CHECKING:  # only: several folders may have a module called conftest
    from conftest import Main

SMALL: dict[str, Any] = {
    "name": "tiny",
    "budget": 2,
    "seeds": [0, 1],
    "base": {
        "task": {
            "model": {"name": "small_cnn", "kwargs": {"width": 4, "hidden": 8}},
            "data": {"kind": "digits", "limit": 200},
        },
        "training": {"device": "cpu", "batch_size": 50, "cpus_per_worker": 2},
        "evaluation": {"draws": 4, "temperature_scaling": True},
    },
    "methods": {
        "AdamW": {"method": {"kind": "adamw", "lr": 0.01}},
        "ours": {"method": {"kind": "proximal_score", "max_mean_step": 0.5}},
    },
}
TUNED = {
    "AdamW": {"method": {"kind": "adamw"}, "tune": {"lr": [0.001, 0.01]}},
    "ours": {"method": {"kind": "proximal_score"}, "tune": {"max_mean_step": [0.2, 0.4]}},
}


@pytest.fixture(scope="session")
def compare(repository: Path) -> Main:
    return script(repository, "compare")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def file_of(folder: Path, **changes: Any) -> str:
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return str(path)


def planned(folder: Path, **changes: Any) -> Plan:
    return plan(*load(Path(file_of(folder, **changes)), []))


# ---------------------------------------------------------------- a small comparison on Ray


@dataclass(frozen=True)
class Compared:
    """A finished comparison: where, how it was started, and what it printed."""

    folder: Path
    arguments: list[str]
    output: str

    @property
    def cells(self) -> dict[tuple[str, int], Path]:
        found = (self.folder / "runs" / "tiny").glob("*/default/*")
        return {(path.parts[-3], int(path.name)): path for path in found}

    def record(self, method: str, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.cells[method, seed] / "cell.json").read_text())
        return found


@pytest.fixture(scope="module")
def compared(ray_local: None, compare: Main, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    """Two methods, two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    arguments = ["--config", file_of(folder), f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"]
    before = Path.cwd()
    os.chdir(folder)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *values, **_: lines.append(" ".join(map(str, values))))
        assert compare(arguments) == 0
    yield Compared(folder, arguments, "\n".join(lines))
    os.chdir(before)


def test_a_finished_comparison_prints_its_results_and_ends(
    compared: Compared, compare: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(f"sqlite:///{compared.folder / 'mlflow.db'}")

    def points() -> dict[str, int]:
        runs = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
        return {
            f"{run.info.run_id} {name}": len(client.get_metric_history(run.info.run_id, name))
            for run in runs
            for name in run.data.metrics
        }

    before = points()
    assert compare(compared.arguments) == 0
    shown = capsys.readouterr().out
    assert "\ntiny is finished: these are its results" in shown
    printed, earlier = (out[out.index("\ntiny\nTest split") :].splitlines() for out in (shown, compared.output))
    assert printed == earlier
    numbers = next(index for index, line in enumerate(printed) if line.startswith("AdamW"))
    assert max(map(len, printed[numbers - 2 : numbers + 2])) <= 80
    assert points() == before


def test_the_table_is_what_the_predictions_of_the_cells_give(compared: Compared) -> None:
    report = compared.folder / "runs" / "tiny" / "report"
    lines = [line for line in (report / "comparison.md").read_text().splitlines() if line.startswith("|")]
    heading, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in body] == ["AdamW", "ours"]
    adamw_seconds = statistics.mean(compared.record("adamw", seed)["seconds"] for seed in (0, 1))
    for row, method in zip(body, ("adamw", "ours"), strict=True):
        expected: dict[str, list[float]] = {}
        for seed in (0, 1):
            with np.load(compared.cells[method, seed] / "predictions.npz") as held:
                logs, targets = held["log_probabilities"].astype(float), held["targets"]
            right = logs.argmax(1) == targets
            order = np.argsort(-logs.max(1), kind="stable")
            errors = (~right[order]).cumsum() / np.arange(1, len(right) + 1)
            brier = ((np.exp(logs) - np.eye(10)[targets]) ** 2).sum(1).mean()
            ece = expected_calibration_error(torch.from_numpy(np.exp(logs.max(1))), torch.from_numpy(right), bins=15)
            seconds = compared.record(method, seed)["seconds"]
            for name, value in {
                "accuracy": right.mean(),
                "NLL": -logs[np.arange(len(targets)), targets].mean(),
                "ECE": ece,
                "Brier": brier,
                "AURC": errors.mean(),
                "x AdamW": seconds / adamw_seconds,
            }.items():
                expected.setdefault(name, []).append(float(value))
        found = dict(zip(heading, row, strict=True))
        for name, values in expected.items():
            mean, error = (float(text) for text in found[name].split(" ± "))
            tolerance = 0.006 if name == "x AdamW" else 1.1e-4
            assert mean == pytest.approx(statistics.mean(values), abs=tolerance), name
            assert error == pytest.approx(statistics.stdev(values) / math.sqrt(2), abs=tolerance), name
        assert found["gradient evaluations"] == "8"  # 2 epochs of 4 batches
        assert found["forward passes"] == ("1" if method == "adamw" else "4")
        assert float(found["peak MB"].split()[0]) > 50
    with (report / "comparison.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in table] == [
        ("AdamW", "0"),
        ("AdamW", "1"),
        ("ours", "0"),
        ("ours", "1"),
    ]
    assert (report / "comparison.png").stat().st_size > 10_000
    for line in (report / "comparison.md").read_text().splitlines():
        assert line.startswith(("#", "|")) or line in compared.output


def test_one_parent_run_has_a_child_for_each_cell(compared: Compared) -> None:
    client = MlflowClient(f"sqlite:///{compared.folder / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_id: run for run in runs if run is not parent}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert parent.data.params["budget"] == "2.0"
    assert {item.path.split("/")[1] for item in client.list_artifacts(parent.info.run_id, "comparison")} == {
        *("comparison.md", "comparison.csv", "comparison.png", "trials.csv")
    }
    recorded = {
        compared.record(method, seed)["run_id"]: compared.record(method, seed) for method, seed in compared.cells
    }
    assert children.keys() == recorded.keys()
    for run_id, record in recorded.items():
        assert children[run_id].data.metrics["test/nll"] == pytest.approx(record["metrics"]["nll"])
        assert children[run_id].data.params["seed"] == str(record["seed"])


@pytest.mark.skipif(not forgets_peak(), reason="this system cannot forget a peak")
def test_cells_share_processes(compared: Compared) -> None:
    records = [compared.record(method, seed) for method, seed in compared.cells]
    assert len({record["process"] for record in records}) < len(records)


def test_methods_may_have_names_that_are_no_tags_of_mlflow(here: Path) -> None:
    name = "Laplace, last layer (full)"
    comparison, source = load(Path(file_of(here, methods={name: {"method": {"kind": "adamw"}}})), [])
    with study.recorded(plan(comparison, source), comparison) as tracked:
        tags = tracked.client.get_run(tracked.run_id).data.tags
    assert json.loads(tags["methods.laplace-last-layer-full"])["method"] == {"kind": "adamw"}


def test_only_a_cell_that_is_gone_runs_again_and_gives_the_same(compared: Compared, compare: Main) -> None:
    before = {key: (path / "cell.json").stat().st_mtime_ns for key, path in compared.cells.items()}
    first = compared.record("ours", 1)
    shutil.rmtree(compared.cells["ours", 1])
    assert compare(compared.arguments) == 0
    after = {key: (path / "cell.json").stat().st_mtime_ns for key, path in compared.cells.items()}
    assert {key for key in before if before[key] != after[key]} == {("ours", 1)}
    again = compared.record("ours", 1)
    assert again["run_id"] != first["run_id"]
    assert again["metrics"] == first["metrics"]


def test_a_finished_comparison_with_other_settings_is_refused(
    compared: Compared, compare: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare([*compared.arguments, "evaluation.draws=5"]) == 2
    error = capsys.readouterr().err
    assert "was finished with evaluation.draws=4, now it is 5: take another name" in error
    assert error.count("\n") == 1


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": [0, 1, 0]}, "seeds: 0 is repeated"),
        ({"budget": 0.5}, "budget is 0.5 epochs; it must be one epoch"),
        (
            {"methods": {"drop": {"method": {"kind": "mc_dropout"}}}},
            "methods.drop: method.kind=mc_dropout: the network has no",
        ),
        (
            {"methods": {"IVON": {"method": {"kind": "ivno"}}}},
            "methods.IVON: method.kind is 'ivno'; did you mean 'ivon'? it must be one of",
        ),
        (
            {"methods": {"a": {"method": {"kind": "adamw", "lrr": 1}}}},
            "methods.a: unknown key 'method.lrr'; did you mean 'lr'",
        ),
        (
            {"methods": {"a": {"method": {"kind": "adamw"}, "methd": {}}}},
            "unknown key 'methods.a.methd'; did you mean 'method'?",
        ),
        (
            {"methods": {"a": {"method": {"kind": "adamw"}, "task": {"data": {"limit": 3}}}}},
            "unknown key 'methods.a.task.data'; valid keys: model",
        ),
        (
            {"methods": TUNED | {"SGD": {"method": {"kind": "sgd"}, "tune": {"lr": [0.1]}}}},
            "methods.AdamW tries 2 learning rates and methods.SGD 1: a fair comparison tries as many for every method",
        ),
        (
            {"methods": {"a": {"method": {"kind": "sgd"}, "tune": {"lr": [0.1, 0.1]}}}},
            "methods.a.tune.lr is [0.1, 0.1]",
        ),
        (
            {"methods": {"a": {"method": {"kind": "sgd"}, "tune": {"rate": [0.1]}}}},
            "methods.a: unknown key 'method.rate'",
        ),
        (
            {"methods": {"5": {"method": {"kind": "ensemble"}}}},
            "methods.5: method.budget=each gives each of 5 members the whole budget, 5 times the gradient evaluations",
        ),
        (
            {"methods": {"5": {"method": {"kind": "ensemble", "members": 5, "budget": "shared"}}}},
            "methods.5: 5 members at 1 gradient evaluations per step take 10 or 5, the others 8",
        ),
        ({"base": SMALL["base"] | {"seed": 3}}, "base.seed comes from 'seeds'"),
        ({"base": SMALL["base"] | {"training": {"epochs": 3}}}, "base.training.epochs follows from 'budget'"),
        ({"methods": {}}, "methods is empty"),
    ],
)
def test_what_would_be_unequal_unfair_or_impossible_is_refused_before_the_first_cell(
    compare: Main, here: Path, changes: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(["--config", file_of(here, **changes)]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["compare.yaml"]


# ---------------------------------------------------------------- budget, tuning, failures


def test_every_method_takes_the_same_number_of_gradient_evaluations() -> None:
    ensemble = EnsembleConfig(members=5, budget="shared", of=ProximalScoreConfig(initial_precision=0.1, paired=True))
    for method, steps in [
        (ProximalScoreConfig(initial_precision=0.1), 1000),
        (ProximalScoreConfig(initial_precision=0.1, paired=True), 500),
        (ProximalScoreConfig(), 990),  # ten batches before
        (LaplaceConfig(), 900),  # a pass over the data after
        (ensemble, 500),
    ]:
        found = equal_budget("a", method, steps_per_epoch=100, total=1000)
        assert (found.steps, found.evaluations) == (steps, 1000)
    assert (
        equal_budget("a", ProximalScoreConfig(initial_precision=0.1, draws=2), 100, 1001).evaluations == 1000
    )  # within one step
    with pytest.raises(ConfigError, match="would not be equal: use a budget of whole multiples of 10"):
        equal_budget("a", ensemble, 100, 1004)
    with pytest.raises(
        ConfigError, match="needs 10 gradient evaluations for one step of each of 5 members; the budget is 4"
    ):
        equal_budget("a", ensemble, 4, 4)


def leave(made: Plan, scores: dict[tuple[str, str, int], float]) -> None:
    """Finished cells with these validation NLLs, as if they had run."""
    for cell in made.possible():
        if (score := scores.get((cell.method, cell.setting, cell.seed))) is not None:
            metrics = {"accuracy": score / 10, "nll": score}
            numbers = {"validation_nll": score, "seconds": 2.0, "gradient_evaluations": 8}
            named = {"method": cell.method, "setting": cell.setting, "seed": cell.seed, "settings": cell.settings()}
            records.write(cell.folder, {"status": "finished", "metrics": metrics} | numbers | named)


def test_validation_data_choose_a_learning_rate_and_the_table_shows_both(here: Path) -> None:
    made = planned(here, methods=TUNED)
    assert [c.trials for c in made.contenders] == [
        {0.001: "default", 0.01: "lr=0.01"},  # a trial at the given rate is the same run
        {0.2: "max_mean_step=0.2", 0.4: "max_mean_step=0.4"},
    ]
    scores = {("AdamW", "default", 0): 1.0, ("AdamW", "default", 1): 3.0, ("AdamW", "lr=0.01", 0): 1.5}
    scores |= {("ours", "default", 0): 0.5, ("ours", "default", 1): 0.7, ("ours", "max_mean_step=0.2", 0): 0.9}
    scores |= {("ours", "max_mean_step=0.4", 0): 0.6}
    leave(made, scores)
    assert driver.kept(made) is None  # ours at 0.4 with the second seed
    leave(made, {("ours", "max_mean_step=0.4", 1): 0.8})
    assert driver.kept(made) is not None
    found = driver.run(made, "parent", lambda line: None)  # no cell runs: Ray is not needed
    told = table.write(made, found, here / "report")
    rows, text = told.rows, table.markdown(made, told)
    nll = {row.label: (row.setting, row.numbers("nll")) for row in rows}
    assert nll == {
        "AdamW": ("default", [1.0, 3.0]),
        "AdamW (tuned)": ("default", [1.0, 3.0]),
        "ours": ("default", [0.5, 0.7]),
        "ours (tuned)": ("max_mean_step=0.4", [0.6, 0.8]),
    }
    assert "| AdamW | default, lr=0.001 | 0.2000 ± 0.1000 | 2.0000 ± 1.0000 |" in text
    assert "| ours (tuned) | max_mean_step=0.4 | 0.0700 ± 0.0100 | 0.7000 ± 0.1000 |" in text
    assert len((here / "report" / "trials.csv").read_text().splitlines()) == 5


def test_a_cell_that_fails_says_why_and_what_is_missing_is_shown(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(here)

    def out_of_memory(*_: Any) -> None:
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(cells, "measured", out_of_memory)
    cell = made.cell(made.contenders[0], "default", 1)
    record = cells.run(cell, "parent")
    assert record == records.read(cell.folder)
    assert (record["status"], record["reason"]) == ("failed", "RuntimeError: no memory")
    assert records.finished(cell) is None  # it is tried again
    leave(made, {("AdamW", "default", 0): 1.0})
    found = {driver.key(c): records.read(c.folder) or {} for c in made.first()}
    told = table.write(made, found, here / "report")
    rows, text = told.rows, table.markdown(made, told)
    assert [len(row.records) for row in rows] == [1, 0]
    assert "| AdamW, 1 of 2 seeds | default | 0.1000 | 1.0000 |" in text
    assert "* AdamW, seed 1: missing: RuntimeError: no memory" in text
    assert "missing: RuntimeError: no memory" in (here / "report" / "comparison.csv").read_text()


def test_a_state_from_before_its_draws_is_called_a_point_estimate(here: Path) -> None:
    methods = {"AdamW": {"method": {"kind": "adamw"}}, "SWAG": {"method": {"kind": "swag", "collect_every": 0.25}}}
    made = planned(here, methods=methods)
    leave(made, {(name, "default", seed): 1.0 for name in methods for seed in made.seeds})
    for cell in made.possible():
        drawn = {"forward_passes": 4 if (cell.method, cell.seed) == ("SWAG", 1) else 1}
        records.write(cell.folder, (records.read(cell.folder) or {}) | drawn)
    found = {driver.key(c): records.read(c.folder) or {} for c in made.first()}
    text = table.markdown(made, table.write(made, found, here / "report"))
    assert text.count("was judged as a point estimate") == 1
    assert "* SWAG, seed 0: the state that was judged has nothing to draw from yet" in text


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_without_its_finished_cells(
    compare: Main, repository: Path, here: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"RAY_ADDRESS": "local"}
    command = [sys.executable, str(repository / "jobs" / "compare.py"), "--config", file_of(here)]
    process = subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("cells 1/4"):
            break
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for survivor in psutil.wait_procs(family, timeout=30)[1]:  # agents of Ray's
        survivor.kill()
    kept = {path: path.stat().st_mtime_ns for path in here.glob("runs/tiny/*/*/*/cell.json")}
    assert 1 <= len(kept) < 4
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert f"cells {len(kept) + 1}/4" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(here.glob("runs/tiny/*/*/*/cell.json"))) == 4
    client = MlflowClient(f"sqlite:///{here / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("proxscore").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len([run for run in runs if "mlflow.parentRunId" not in run.data.tags]) == 1
