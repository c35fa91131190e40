"""Which likelihood data get, and that a short training with it forecasts nothing that cannot be."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_forecasts import SMALL, tree

import proxscore
from proxscore.calibration.conformal_forecasts import LEVELS, moved
from proxscore.config import ConfigError
from proxscore.forecasting.forecasts import Forecaster
from proxscore.forecasting.interval_ends import ends_of
from proxscore.forecasting.likelihoods.choosing import chosen
from proxscore.forecasting.likelihoods.names import LIKELIHOODS, known
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.series_task import SeriesTask
from proxscore.forecasting.trained import check_trained
from proxscore.posterior import Posterior
from proxscore.training.data.batches import evaluation_batches
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train


def drawn(kind: str, steps: int = 240, seed: int = 0) -> np.ndarray:
    """A series of this kind with a daily season."""
    random = np.random.default_rng(seed)
    season = 1 + np.sin(2 * np.pi * np.arange(steps) / 24)
    if kind == "counts":
        return random.negative_binomial(3, 3 / (3 + 4 * season + 0.5)).astype(float)
    if kind == "many zeros":
        return np.where(random.random(steps) < 0.7, 0, 5 + random.poisson(20, steps)).astype(float)
    if kind == "rain":
        return np.where(random.random(steps) < 0.5, 0, random.gamma(2.0, 0.7, steps))
    if kind == "near zero":
        return np.abs(season + 0.4 * random.standard_normal(steps)) + 0.01
    if kind == "far":
        return 50 + 5 * season + random.standard_normal(steps)
    assert kind == "both signs"
    return season - 1 + 0.3 * random.standard_normal(steps)


CHOICES = {
    "counts": "negative_binomial",
    "many zeros": "zero_inflated_negative_binomial",
    "rain": "zero_inflated_lognormal",
    "near zero": "truncated_student_t",
    "far": "student_t",
    "both signs": "student_t",
}


@pytest.mark.parametrize("kind", CHOICES)
def test_the_likelihood_follows_from_the_kind_of_the_targets_whatever_the_unit_and_the_gaps(kind: str) -> None:
    series = [drawn(kind, seed=seed) for seed in range(3)]
    assert chosen(series, 24).likelihood == CHOICES[kind]
    series[1][::7] = np.nan
    series[2][:] = np.nan
    assert chosen(series, 24).likelihood == CHOICES[kind]
    if "counts" not in kind and "zeros" not in kind:
        assert chosen([each * 1e-4 for each in series], 24).likelihood == CHOICES[kind]
        assert chosen([each * 1e4 for each in series], 24).likelihood == CHOICES[kind]


def test_data_without_numbers_and_zeros_alone_get_a_student_t() -> None:
    assert chosen([np.full(30, np.nan)], 1).likelihood == "student_t"
    assert chosen([np.zeros(30)], 1).likelihood == "student_t"


def test_large_counts_far_above_zero_get_a_student_t() -> None:
    counts = np.random.default_rng(0).poisson(400, 300).astype(float)
    assert chosen([counts], 1).likelihood == "student_t"


def written(path: Path, kind: str, unit: float = 1.0) -> Path:
    hours = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(240), unit="h")
    frames = [
        pd.DataFrame({"timestamp": hours, "name": str(seed), "target": unit * drawn(kind, seed=seed)})
        for seed in range(2)
    ]
    pd.concat(frames).to_parquet(path)
    return path


def task_of(path: Path, network: str = "MLP", likelihood: str = "auto", **training: Any) -> tuple[Any, SeriesTask]:
    config = tree(path, network, **training)
    model = config.task.model.model_copy(update={"likelihood": likelihood, "kwargs": SMALL[network]})
    data = config.task.data.model_copy(update={"validation_windows": 12})
    config = config.model_copy(update={"task": config.task.model_copy(update={"model": model, "data": data})})
    return config, SeriesTask(config.task)


@pytest.mark.parametrize("kind", ["counts", "many zeros", "rain", "near zero"])
def test_a_training_on_data_from_zero_on_gives_no_quantile_sample_or_interval_below(kind: str, tmp_path: Path) -> None:
    config, task = task_of(written(tmp_path / "series.parquet", kind), epochs=3)
    assert task.likelihood_name == CHOICES[kind]
    line, *_ = task.told
    assert line.startswith(f"likelihood {CHOICES[kind]}, by the training targets")
    context = LocalWorker(tmp_path / "run", torch.device("cpu"), lambda payloads: None, keep=1)
    results = train(config, config.method, config.training.epochs, task, context)
    metrics = results["test"]["posterior"]
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 < metrics["calibrated/width_90"] < 100
    (final,) = (tmp_path / "run" / "checkpoints").glob("*/posterior")
    posterior = Posterior.load(final)
    described = json.loads(json.dumps(posterior.description["data"]))
    assert described["likelihood"] == CHOICES[kind]
    check_trained(described, "posterior.json")
    again = Forecaster(config.task, described)
    assert again.blueprint.likelihood == CHOICES[kind]
    module = posterior.load_into(task.build_model())
    found = task.predict(module, lambda: evaluation_batches(task.data.test, 10, 0, 1), posterior, draws=4)
    for chunk in found.chunks():
        quantiles = chunk.quantiles([1e-4, 0.01, 0.05, 0.5, 0.95, 0.99])
        assert (quantiles >= 0).all()
        assert (quantiles.diff(dim=0) >= 0).all()
        assert (chunk.samples >= 0).all()
        if task.likelihood.counts:
            assert torch.equal(quantiles, quantiles.floor())
        for thresholds in (-0.5, 0.0, 3.0):
            lower, upper = moved(*ends_of(chunk, LEVELS), torch.tensor(thresholds), chunk.width, chunk.least)
            assert (lower >= 0).all()
            assert (upper >= lower).all()
    # The past of new series has what cannot be: their forecasts say so.
    new = pd.read_parquet(tmp_path / "series.parquet").reset_index(drop=True)
    predictor = proxscore.load(final, device="cpu")
    assert not [note for note in predictor.predict(new).notes if "excludes" in note]
    new.loc[238, "target"] = -3.0
    (note,) = [note for note in predictor.predict(new).notes if "excludes" in note]
    assert note.startswith(
        "1 series have values that their likelihood excludes (the first: series '0' has -3 at 2024-01-10 22:00:00): "
    )


@pytest.mark.parametrize("network", ["MLP", "DLinear", "Koopa", "DeepAR"])
def test_every_likelihood_that_a_network_knows_has_a_gradient(network: str, tmp_path: Path) -> None:
    path = written(tmp_path / "series.parquet", "counts")
    for likelihood in known(network):
        if likelihood == "lognormal":  # there are zeros
            continue
        _, task = task_of(path, network, likelihood)
        module = task.build_model()
        inputs, targets = task.data.train.__getitems__([0, 5, 60])
        outputs = module(inputs)
        assert outputs.shape == (3, 6, LIKELIHOODS[likelihood]().size)
        loss = task.likelihood.nll(outputs, targets).sum()
        loss.backward()
        assert loss.isfinite()
        assert all(part.grad.isfinite().all() for part in module.parameters() if part.grad is not None)


@pytest.mark.parametrize("likelihood", ["truncated_student_t", "lognormal", "normal_mixture", "quantiles"])
@pytest.mark.parametrize("network", ["MLP", "DLinear"])
def test_the_density_of_a_network_changes_with_the_unit_by_its_logarithm(
    likelihood: str, network: str, tmp_path: Path
) -> None:
    """Tenfold data give a density of a tenth, and a loss that is larger by log 10 a step."""
    found = []
    for unit in (1.0, 10.0):
        _, task = task_of(written(tmp_path / f"{unit}.parquet", "near zero", unit), network, likelihood)
        torch.manual_seed(0)
        module = task.build_model().eval()
        inputs, targets = task.data.test.__getitems__(range(6))
        outputs = module(inputs).detach()
        (chunk,) = ForecastPredictive(task.likelihood, outputs[None], None, targets).chunks()
        found.append((float(task.likelihood.nll(outputs, targets).mean()) / 6, float(chunk.log_density.mean())))
    (loss, density), (tenfold_loss, tenfold) = found
    assert tenfold_loss - loss == pytest.approx(math.log(10), abs=1e-3)
    assert density - tenfold == pytest.approx(math.log(10), abs=1e-3)


def test_targets_that_a_likelihood_makes_impossible_are_refused_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "series.parquet", "both signs")
    for likelihood, what in (
        ("negative_binomial", "whole numbers from 0 on"),
        ("truncated_normal", "numbers from 0 on"),
        ("lognormal", "numbers above 0"),
    ):
        with pytest.raises(ConfigError, match=rf"task.model.likelihood={likelihood} is of {what}; series '0' has "):
            task_of(path, likelihood=likelihood)


def test_a_likelihood_that_a_network_does_not_know_is_refused_or_the_next_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path / "series.parquet", "counts")
    with pytest.raises(ConfigError, match="likelihood=quantiles: DeepAR does not know it; take student_t, normal, or"):
        task_of(path, "DeepAR", "quantiles")
    _, task = task_of(path, "DeepAR")
    assert task.likelihood_name == "student_t"
    assert task.told[0].endswith("; DeepAR does not know negative_binomial")


def test_a_description_without_a_likelihood_is_of_a_student_t(tmp_path: Path) -> None:
    config, task = task_of(written(tmp_path / "series.parquet", "counts"))
    described = json.loads(json.dumps(task.describe()))
    del described["likelihood"]
    check_trained(described, "posterior.json")
    assert Forecaster(config.task, described).blueprint.likelihood == "student_t"
    described["likelihood"] = "gamma"
    with pytest.raises(ConfigError, match=r"posterior.json: data.likelihood is 'gamma'; it must be one of student_t"):
        check_trained(described, "posterior.json")


@pytest.mark.parametrize("kind", ["births", "demand", "ratings", "stock", "mostly small"])
def test_whole_numbers_that_no_negative_binomial_suits_get_a_density(kind: str) -> None:
    """Large ones have room between them; those that vary less than a Poisson distribution would get intervals far too wide."""
    random = np.random.default_rng(0)
    season = np.sin(2 * np.pi * np.arange(700) / 7)
    made = {
        "births": [random.poisson(11_000 + 2000 * season), random.poisson(900 + 90 * season)],
        "demand": [np.round(30_000 + 8000 * season + 300 * random.standard_normal(700)), np.full(700, 0)],
        "ratings": [3 + random.integers(0, 3, 700), 3 + random.integers(0, 3, 700)],
        "stock": [20 + np.round(10 * season) + random.integers(0, 2, 700)],
        "mostly small": [random.poisson(4, 700)],
    }[kind]
    found = chosen([each.astype(float) for each in made], 7)
    assert found.likelihood == ("negative_binomial" if kind == "mostly small" else found.likelihood)
    assert (found.likelihood in ("student_t", "truncated_student_t", "zero_inflated_lognormal")) == (
        kind != "mostly small"
    )
    if kind in ("ratings", "stock"):
        assert found.told.startswith("counts that vary less than a negative binomial; none is below 0, and ")


def test_one_series_below_zero_among_others_counts() -> None:
    others = [drawn("counts", seed=seed) for seed in range(20)]
    assert chosen([*others, np.array([-1.0, 2.0, 3.0])], 24) == chosen([np.array([-1.0])], 24)


def test_what_the_data_chose_is_recorded_and_shown(tmp_path: Path) -> None:
    path = written(tmp_path / "series.parquet", "counts")
    _, task = task_of(path)
    assert task.chosen["task.model.likelihood"] == "negative_binomial"
    numbers = {
        word: float(number)
        for word, number in re.findall(r"(linear|theta|climatology)[^;]*?([\d.]+)(?=;|$)", task.told[1])
    }
    assert len(numbers) == 3
    assert (
        task.chosen["task.model.anchor"] == min(numbers, key=numbers.__getitem__) == task.told[1].split()[1].strip(",")
    )
    _, task = task_of(path, likelihood="student_t")
    assert list(task.chosen) == ["task.model.anchor"]
    assert len(task.told) == 1


def test_a_posterior_from_before_there_were_families_and_anchors_is_of_a_student_t(tmp_path: Path) -> None:
    """Its description says neither, nor does its section, whose defaults are others now."""
    config, _ = task_of(written(tmp_path / "series.parquet", "counts"), "DLinear", "student_t")
    section = config.task.model_copy(update={"model": config.task.model.model_copy(update={"anchor": "none"})})
    module = SeriesTask(section).build_model()
    described = json.loads(json.dumps(SeriesTask(section).describe()))
    for key in ("likelihood", "anchor"):
        del described[key]
    check_trained(described, "posterior.json")
    old = config.task.model_copy(update={"model": type(section.model)(name="DLinear", kwargs=section.model.kwargs)})
    assert (old.model.likelihood, old.model.anchor) == ("auto", "auto")
    again = Forecaster(old, described)
    assert (again.blueprint.likelihood, again.anchor) == ("student_t", None)
    again.build_model().load_state_dict(module.state_dict())
    opened = SeriesTask(old, trained=described)
    assert opened.likelihood_name == "student_t"
    opened.build_model().load_state_dict(module.state_dict())


def test_test_targets_that_the_likelihood_excludes_are_said_and_those_of_validation_choose_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "series.parquet", "counts")
    frame = pd.read_parquet(path).reset_index(drop=True)
    frame.loc[238, "target"] = -3.0  # of series 0, at 22 o'clock of the last day
    frame.to_parquet(path)
    _, task = task_of(path, likelihood="negative_binomial")
    inputs, targets = task.data.test.__getitems__(range(len(task.data.test)))
    outputs = task.build_model().eval()(inputs).detach()
    for _ in range(2):  # it is said once
        metrics, _ = task.evaluator.evaluate(
            ForecastPredictive(task.likelihood, outputs[None], None, targets), 10, torch.device("cpu"), ""
        )
    (line,) = [each for each in caplog.messages if "cannot be" in each]
    assert "series '0' has -3 at 2024-01-10 22:00:00): nll is infinite" in line
    assert metrics["nll"] == math.inf
    assert math.isfinite(metrics["crps"])
    assert sum("is above their level even if forecasts are right" in each for each in caplog.messages) == 1
    frame.loc[238, "target"], frame.loc[210, "target"] = 1.0, 2.5  # of validation
    frame.to_parquet(path)
    with pytest.raises(ConfigError, match=r"series '0' has 2\.5 at 2024-01-09 18:00:00, before its test part"):
        task_of(path, likelihood="negative_binomial")
    _, task = task_of(path)
    assert task.likelihood_name == "student_t"
    assert task.told[0].endswith("; but series '0' has 2.5 at 2024-01-09 18:00:00 in its validation part")
