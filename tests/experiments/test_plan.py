"""What is refused before the first trial, each in one line that names the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_sweeps import SPACE, settings, tree

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.sweep import settings as tune_settings
from proxscore.experiments.sweep.plan import plan
from proxscore.experiments.sweep.settings import TuneConfig
from proxscore.training import evaluation
from proxscore.training.local.worker import LocalWorker
from proxscore.training.run import Run


@pytest.mark.parametrize(
    ("sections", "tune", "message"),
    [
        ({}, {"objectives": ["nl"]}, r"tune\.objectives: no trial reports 'nl'; one of nll, ece"),
        ({}, {"objectives": ["crps"]}, r"tune\.objectives: no trial reports 'crps'"),
        ({}, {"objectives": ["nll", "ece", "brier"]}, r"tune\.objectives is .*: give one, or two different ones"),
        (
            {},
            {"objectives": ["nll", "ece"], "scheduler": "asha"},
            r"tune\.scheduler=asha: .* there are two \(nll, ece\)",
        ),
        ({}, {"search": "population", "scheduler": "asha"}, r"tune\.scheduler=asha: a population replaces"),
        ({"training": {"validate_every": 4}}, {"scheduler": "asha"}, r"trials report nothing on the way"),
        ({}, {"scheduler": "asha", "grace": 4}, r"tune\.grace=4 is the whole run"),
        ({}, {"search": "population", "space": SPACE}, r"leave tune\.space out"),
        (
            {},
            {"search": "population", "population": {"rounds": 17}},
            r"tune\.population\.rounds=17: a run has 16 steps",
        ),
        ({}, {"space": {}}, r"tune\.space is empty"),
        (
            {"training": {"workers": 0, "storage": "memory://bucket/runs"}},
            {},
            r"training\.storage memory://bucket/runs: without Ray's workers it must be a local folder",
        ),
    ],
)
def test_a_sweep_that_cannot_work_is_refused(
    sections: dict[str, Any], tune: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = configuration.parse(tree(tmp_path, **sections))
    with pytest.raises(ConfigError, match=message) as caught:
        plan(config, TuneConfig.model_validate(tune))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_other_methods_have_no_population_and_ensembles_are_not_tuned(tmp_path: Path) -> None:
    adamw = configuration.parse(tree(tmp_path) | {"method": {"kind": "adamw"}})
    with pytest.raises(
        ConfigError, match=r"tune\.search=population learns the schedules of method\.kind=proximal_score"
    ):
        plan(adamw, TuneConfig(search="population"))
    ensemble = configuration.parse(tree(tmp_path) | {"method": {"kind": "ensemble"}})
    with pytest.raises(ConfigError, match="put its member's section in its place"):
        plan(ensemble, TuneConfig())


def test_without_a_scheduler_in_the_settings_the_one_that_can_work_is_taken(tmp_path: Path) -> None:
    config, _ = settings(tmp_path)
    assert plan(config, TuneConfig()).scheduler == "asha"
    assert plan(config, TuneConfig(objectives=["nll", "ece"])).scheduler == "none"
    assert plan(config, TuneConfig(search="population")).scheduler == "none"
    short = configuration.parse(tree(tmp_path, training={"epochs": 1}))
    assert plan(short, TuneConfig()).scheduler == "none"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), ("3d", 259200), (7, 7)]
)
def test_a_time_limit_has_a_unit(text: Any, seconds: float) -> None:
    assert TuneConfig(time_limit=text).time_limit == seconds


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("tune: {trails: 3}", r"tune: unknown key 'trails'; did you mean 'trials'"),
        ("tune: {time_limit: soon}", "time_limit is 'soon': .*write seconds, or a number with s, m, h or d"),
        ("tune: 3", "tune is 3: it must be a section"),
        ("tune: {seeds: []}", "seeds is .*: give different seeds"),
        ("tune: {space: {method.lr: {normal: [0, 1]}}}", "unknown key 'space.method.lr.normal'"),
        ("tune: {population: {factors: [0]}}", "give positive factors"),
    ],
)
def test_mistakes_in_the_section_are_one_line(lines: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(lines)
    with pytest.raises(ConfigError, match=message) as caught:
        tune_settings.load(file, [])
    assert "\n" not in str(caught.value)


def test_a_job_without_the_section_and_with_overrides_is_a_sweep(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("training: {epochs: 3}")
    config, tune = tune_settings.load(file, ["tune.trials=7", "training.batch_size=20", "tune.seeds=[4, 5]"])
    assert (config.training.epochs, config.training.batch_size, tune.trials) == (3, 20, 7)
    assert config.seed == 4  # the first seed is that of the search


@pytest.mark.parametrize("kind", ["vision", "forecasting"])
def test_every_objective_is_reported_on_validation_data(kind: str, tmp_path: Path) -> None:
    section: dict[str, Any] = tree(tmp_path)["task"]
    if kind == "forecasting":
        model = {"name": "SimpleFeedForward", "kwargs": {"hidden_dimensions": [4]}}
        dates = [f"2024-01-{1 + hour // 24:02d} {hour % 24:02d}:00" for hour in range(120)]
        rows = [f"{date},{hour % 24 + hour * 7919 % 13}" for hour, date in enumerate(dates)]
        (tmp_path / "series.csv").write_text("\n".join(["timestamp,target", *rows]))
        data = {"kind": "table", "path": str(tmp_path / "series.csv")}
        section = {"kind": "forecasting", "horizon": 4, "context": 8, "model": model, "data": data}
    config = configuration.parse({"task": section, "training": {"workers": 0}})
    task = config.task.build()
    worker = LocalWorker(tmp_path, torch.device("cpu"), lambda payloads: None, keep=1)
    metrics, _ = evaluation.evaluate(Run(config, task, worker, task.build_model()), "validation", 0)
    assert set(task.evaluator.objectives) <= set(metrics)
