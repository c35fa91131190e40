"""Forecasting as a task: its predictive is the mixture written out, and the whole path from training to forecasts."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from small_forecasts import tree, write_series

from proxscore import config as configuration
from proxscore.config import ConfigError
from proxscore.experiments.comparison import table as table_of_comparison
from proxscore.experiments.comparison.driver import Progress
from proxscore.experiments.sweep import job, report
from proxscore.forecasting import predictive
from proxscore.forecasting.forecasts import Forecaster, ahead, gluonts_forecasts, table
from proxscore.forecasting.networks import NAMES
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.series_task import SeriesTask
from proxscore.posterior import Posterior
from proxscore.training import launch
from proxscore.training.data.batches import evaluation_batches
from proxscore.training.local.worker import LocalWorker
from proxscore.training.loop.train import train


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_series(tmp_path / "series.parquet")


@pytest.mark.parametrize("network", NAMES)
def test_a_network_trains_is_judged_saves_and_forecasts_what_comes_after_the_data(
    network: str, series: Path, tmp_path: Path
) -> None:
    config = tree(series, network)
    task = SeriesTask(config.task)  # type: ignore[arg-type]
    reports: list[dict[str, Any]] = []
    context = LocalWorker(tmp_path / "run", torch.device("cpu"), lambda payloads: reports.append(payloads[0]), keep=1)
    results = train(config, config.method, config.training.epochs, task, context)
    assert set(results["test"]) == {"posterior", "mean"}
    metrics = results["test"]["posterior"]
    assert {"crps", "nll", "mase", "msis", "coverage_90", "epistemic_sd", "aleatoric_sd"} <= metrics.keys()
    assert metrics["observed_steps"] == 2 * 3 * 6
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["epistemic_sd"] > 0
    json.dumps(task.describe())
    (final,) = (tmp_path / "run" / "checkpoints").glob("*/posterior")
    assert len(list(final.parent.glob("figures/*_posterior.png"))) == 5

    posterior = Posterior.load(final)
    module = posterior.load_into(task.build_model())
    windows = ahead(task)
    found = task.predict(module, lambda: evaluation_batches(windows, 10, 0, 1), posterior, draws=4)
    rows = table(found, task.series, [0.1, 0.5, 0.9]).to_pandas()
    assert rows.groupby("series").size().to_dict() == {"high": 6, "low": 6}
    assert rows["timestamp"].min() == pd.Timestamp("2024-01-01") + pd.Timedelta(hours=200)
    assert (rows["q0.1"] < rows["q0.5"]).all()
    assert (rows["q0.5"] < rows["q0.9"]).all()
    for forecast in gluonts_forecasts(found, task.series):
        assert forecast.samples.shape == (200, 6)
        assert str(forecast.start_date) == "2024-01-09 08:00"
        own = rows[rows["series"] == forecast.item_id]
        error = (
            6 * forecast.samples.std(0) / np.sqrt(200)
        )  # of a median of samples; exact where the distribution is known
        assert (np.abs(own["q0.5"] - np.median(forecast.samples, 0)) < error).all()


def test_forecasts_take_known_covariates_from_the_rows_after_the_last_target(tmp_path: Path) -> None:
    hours = np.arange(206)
    frame = pd.DataFrame({"timestamp": pd.Timestamp("2024-01-01") + pd.to_timedelta(hours, unit="h")})
    frame["load"] = hours.astype(float)
    frame["target"] = np.where(hours < 200, np.sin(hours / 4), np.nan)
    frame.to_parquet(tmp_path / "known.parquet")
    data = {"kind": "table", "path": str(tmp_path / "known.parquet"), "known_covariates": ["load"]}
    model = {"name": "TiDE", "kwargs": {"num_layers_encoder": 1}}
    config = configuration.parse(
        {"task": {"kind": "forecasting", "horizon": 6, "context": 24, "model": model, "data": data}}
    )
    windows = ahead(SeriesTask(config.task))  # type: ignore[arg-type]
    fields = windows.panel.packing.unpack(windows.__getitems__([0])[0])
    values = torch.cat([field.flatten() for name, field in fields.items() if "dynamic" in name or "time" in name])
    assert set(range(200, 206)) <= set(values.tolist())


def test_the_predictive_is_the_mixture_over_draws(series: Path) -> None:
    task = SeriesTask(tree(series).task)  # type: ignore[arg-type]
    torch.manual_seed(0)
    outputs = torch.stack([4 + torch.rand(3, 5, 6), torch.randn(3, 5, 6), 0.5 + torch.rand(3, 5, 6)], -1)
    targets = torch.stack([torch.randn(5, 6), (torch.rand(5, 6) > 0.3).float(), *torch.zeros(2, 5, 6)], 1)
    mixture = ForecastPredictive(task.likelihood, outputs, None, targets)
    densities = stats.t(*outputs.double().numpy().transpose(3, 0, 1, 2)).logpdf(targets[:, 0].numpy())
    observed = targets[:, 1].numpy()
    joint = np.log(np.exp((densities * observed).sum(-1)).mean(0))
    np.testing.assert_allclose(mixture.log_density.numpy(), joint, rtol=1e-4)
    (chunk,) = mixture.chunks()
    np.testing.assert_allclose(chunk.log_density.numpy(), np.log(np.exp(densities).mean(0)), rtol=1e-4)
    df, loc, scale = outputs.double().unbind(-1)
    torch.testing.assert_close(chunk.mean.double(), loc.mean(0), rtol=1e-4, atol=1e-6)
    assert chunk.aleatoric is not None
    assert chunk.epistemic is not None
    torch.testing.assert_close(chunk.aleatoric.double(), (scale**2 * df / (df - 2)).mean(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(chunk.epistemic.double(), loc.var(0, correction=0), rtol=1e-3, atol=1e-6)
    # 201 samples of each step: their mean is within five standard errors of the mixture's.
    error = ((chunk.aleatoric + chunk.epistemic) / len(chunk.samples)).sqrt()
    assert ((chunk.samples.mean(0) - chunk.mean).abs() < 5 * error).all()


@pytest.mark.parametrize("network", ["SimpleFeedForward", "DeepAR"])
def test_many_windows_are_kept_in_a_file_with_the_same_numbers(
    network: str, series: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = SeriesTask(tree(series, network).task)  # type: ignore[arg-type]
    torch.manual_seed(0)
    module = task.build_model()

    def found() -> ForecastPredictive:
        torch.manual_seed(0)
        return task.predict(module, lambda: evaluation_batches(task.data.test, 4, 0, 1))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_memory = found()
    monkeypatch.setattr(predictive, "IN_MEMORY", 100)
    in_file = found()
    assert torch.equal(in_file.outputs, in_memory.outputs)
    if in_memory.paths is not None:
        assert in_file.paths is not None
        assert torch.equal(in_file.paths, in_memory.paths)
    assert torch.equal(in_file.log_density, in_memory.log_density)
    assert not list(tmp_path.glob("proxscore-forecasts-*"))  # the file is gone with the last reference


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "evaluation",
            {"temperature_scaling": True},
            r"evaluation\.temperature_scaling: forecasts have no temperature",
        ),
        ("evaluation", {"shifts": ["noisy"]}, r"evaluation\.shifts: they are of images"),
        ("training", {"precision": "bf16"}, r"training\.precision=bf16: a window's inputs lie in one vector"),
        ("training", {"meta_init": True}, r"training\.meta_init: GluonTS's networks have constants"),
    ],
)
def test_settings_that_forecasting_does_not_serve_are_refused_before_a_run_exists(
    section: str, values: dict[str, Any], message: str, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tree(series)
    changed = getattr(config, section).model_copy(update=values)
    with pytest.raises(ConfigError, match=message):
        launch.run(config.model_copy(update={section: changed}))
    assert not (tmp_path / "runs").exists()


def test_forecasts_of_other_data_than_those_of_training_are_refused(series: Path) -> None:
    config = tree(series).task
    trained = SeriesTask(config).describe()  # type: ignore[arg-type]
    SeriesTask(config, trained=trained)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"task\.data has frequency h; the posterior was trained on D"):
        SeriesTask(config, trained=trained | {"frequency": "D"})  # type: ignore[arg-type]


def _regions(path: Path, regions: dict[str, str], steps: int) -> Path:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "timestamp": pd.date_range("2024-01-01", periods=steps, freq="h"),
                "name": name,
                "region": region,
                "target": rng.normal(10 * number + 10, 1, steps),
            }
        )
        for number, (name, region) in enumerate(regions.items())
    ]
    pd.concat(parts).to_parquet(path)
    return path


def _config(path: Path, network: str) -> Any:
    data = {"kind": "table", "path": str(path), "id_columns": ["name"], "static_categories": ["region"]}
    found = tree(path, network).model_dump(mode="json")["task"]
    return configuration.parse({"task": found | {"data": data}}).task


@pytest.mark.parametrize("network", ["SimpleFeedForward", "DeepAR", "TFT"])
@pytest.mark.parametrize("steps", [24, 2, 9])
def test_only_a_context_of_any_trained_category_is_needed_to_forecast(network: str, steps: int, tmp_path: Path) -> None:
    """The forecast of a few steps of one series is that of the same series among all, whose categories have other codes."""
    regions = {"a": "east", "b": "north", "c": "south", "d": "west"}
    config = _config(_regions(tmp_path / "all.parquet", regions, 100), network)
    task = SeriesTask(config)
    torch.manual_seed(0)
    module = task.build_model().eval()
    frame = pd.read_parquet(tmp_path / "all.parquet")
    short = frame[(frame["name"] == "c") & (frame.groupby("name").cumcount(ascending=False) < steps)]
    short.assign(name="new").to_parquet(tmp_path / "few.parquet")
    forecaster = Forecaster(_config(tmp_path / "few.parquet", network), task.describe())
    assert forecaster.series.series[0].static_categories == (2,) if network != "SimpleFeedForward" else True
    rebuilt = forecaster.build_model().eval()
    rebuilt.load_state_dict(module.state_dict())
    inputs = ahead(forecaster).__getitems__([0])[0]
    assert inputs.shape[1] == task.blueprint.packing.size
    if steps == 24 and network != "DeepAR":  # whose lags reach further back
        torch.testing.assert_close(rebuilt(inputs), module(ahead(task).__getitems__([2])[0]), rtol=1e-4, atol=1e-4)
    assert rebuilt(inputs).isfinite().all()


def test_an_unknown_category_is_refused_where_the_network_takes_it(tmp_path: Path) -> None:
    trained = _regions(tmp_path / "all.parquet", {"a": "east", "b": "north"}, 100)
    new = _regions(tmp_path / "new.parquet", {"x": "north", "y": "moon"}, 30)
    description = SeriesTask(_config(trained, "DeepAR")).describe()
    with pytest.raises(ConfigError) as caught:
        Forecaster(_config(new, "DeepAR"), description)
    expected = "static category region is 'moon', which the network was not trained on; it knows east, north"
    assert str(caught.value) == f"series 'y': {expected}"
    assert len(ahead(Forecaster(_config(new, "SimpleFeedForward"), description))) == 2


@pytest.mark.parametrize("kind", ["constant", "zero", "validation unobserved", "all unobserved"])
def test_an_undefined_metric_is_left_out_told_and_ends_no_run(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "series.parquet")
    frame = pd.read_parquet(tmp_path / "series.parquet")
    late = frame.groupby("name").cumcount(ascending=False)
    if kind in ("constant", "zero"):
        frame["target"] = 3.0 if kind == "constant" else 0.0
    else:  # of 3 test windows of 6 steps the last one's last step is needed to end the series
        first = 18 if kind == "validation unobserved" else 1
        frame.loc[(late >= first) & (late < 24), "target"] = np.nan
    frame.to_parquet(tmp_path / "series.parquet")
    config = tree(tmp_path / "series.parquet")
    task = SeriesTask(config.task)  # type: ignore[arg-type]
    reports: list[dict[str, Any]] = []
    context = LocalWorker(tmp_path / "run", torch.device("cpu"), lambda payloads: reports.append(payloads[0]), keep=1)
    with caplog.at_level("WARNING"):
        results = train(config, config.method, config.training.epochs, task, context)
    found, validated = results["test"]["posterior"], reports[-1]["metrics"]
    assert all(math.isfinite(value) for value in found.values())
    if kind in ("constant", "zero"):
        assert not {"mase", "msis"} & found.keys()
        assert {"crps", "nll", "coverage_90"} <= found.keys()
        assert ("mean_weighted_quantile_loss" in found) == (kind == "constant")
        assert "mase, msis (the past of these series is constant" in caplog.text
    else:
        assert "crps" in found
        assert not any(name.endswith(("crps", "nll")) for name in validated)
        assert "undefined, and left out: crps, nll" in caplog.text
        assert "(no target of these windows is observed)" in caplog.text


def test_tables_and_lines_show_an_undefined_metric_as_such() -> None:
    lines: list[str] = []
    progress = Progress(lines.append, 1, "crps")
    cell = SimpleNamespace(method="a", setting="b", seed=0)
    progress.ended(cell, {"status": "finished", "metrics": {}, "seconds": 1.0})  # type: ignore[arg-type]
    assert "a, b, seed 0: crps undefined, 1.0 s of training" in lines[0]
    assert table_of_comparison.average([math.inf, 1.0], 2) == "inf"
    assert report.spread([math.inf, math.inf]) == "–"
    assert job._moments({"nll": [1.0, math.inf]}) == {"test/nll": math.inf}


def test_a_parquet_table_of_forecasts_can_be_read_back(series: Path, tmp_path: Path) -> None:
    task = SeriesTask(tree(series).task)  # type: ignore[arg-type]
    windows = ahead(task)
    torch.manual_seed(0)
    found = task.predict(task.build_model(), lambda: evaluation_batches(windows, 10, 0, 1))
    rows = table(found, task.series, [0.5])
    pq.write_table(rows, tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").equals(rows)


@pytest.mark.parametrize("method", [{}, {"kind": "ensemble", "of": {"kind": "proximal_score"}}])
def test_forecasts_and_images_have_one_set_of_defaults(method: dict[str, Any]) -> None:
    forecasts = configuration.parse({"task": {"kind": "forecasting", "horizon": 24}, "method": method})
    assert forecasts.method == configuration.parse({"method": method}).method
