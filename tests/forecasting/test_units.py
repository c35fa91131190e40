"""Forecasts follow the unit of the target: those of euros are those of cents, a hundred times smaller."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_forecasts import tree, write_series

from proxscore.config import ConfigError
from proxscore.forecasting.networks import NAMES
from proxscore.forecasting.predictive import ForecastPredictive
from proxscore.forecasting.series_task import SeriesTask
from proxscore.forecasting.task import ForecastingConfig


def fitted(folder: Path, unit: float, network: str) -> tuple[torch.Tensor, dict[str, float], float]:
    """Outputs or samples of the test windows, by the unit; metrics; and the negative log-likelihood before any step."""
    path = write_series(folder / f"{unit:g}.parquet")
    frame = pd.read_parquet(path)
    frame["target"] *= unit
    frame.to_parquet(path)
    config = tree(path, network).task
    assert isinstance(config, ForecastingConfig)
    task = SeriesTask(config)
    torch.manual_seed(0)
    module = task.build_model().eval()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    inputs, targets = task.data.train.__getitems__(range(64))
    losses = []
    for _ in range(3):
        loss = task.likelihood.nll(module(inputs), targets).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, targets = task.data.test.__getitems__(range(len(task.data.test)))
    with torch.no_grad():
        outputs = module(inputs)
    paths = None
    if module.autoregressive:
        paths = module.sample(inputs, 200, torch.Generator().manual_seed(0))
    predictive = ForecastPredictive(task.likelihood, outputs[None], paths, targets)
    metrics, _ = task.evaluator.evaluate(predictive, 10, torch.device("cpu"), "")
    found = outputs[..., -2:] if paths is None else paths
    return found / unit, metrics, losses[0] - config.horizon * math.log(unit)


@pytest.mark.parametrize("network", NAMES)
def test_forecasts_follow_the_unit(network: str, tmp_path: Path) -> None:
    forecasts, metrics, loss = fitted(tmp_path, 1.0, network)
    for unit in (1e-9, 1e9):
        other, others, its_loss = fitted(tmp_path, unit, network)
        torch.testing.assert_close(other, forecasts, rtol=1e-3, atol=1e-3)
        assert its_loss == pytest.approx(loss, rel=1e-3, abs=1e-3)
        assert others["mase"] == pytest.approx(metrics["mase"], rel=1e-3)
        assert others["crps"] / unit == pytest.approx(metrics["crps"], rel=1e-3)


def test_a_scale_for_windows_without_observations_is_in_the_unit_of_the_target(tmp_path: Path) -> None:
    config = tree(write_series(tmp_path / "series.parquet"), "DeepAR").task
    assert isinstance(config, ForecastingConfig)
    frame = pd.read_parquet(tmp_path / "series.parquet")
    frame["target"] *= 1e6
    frame.to_parquet(tmp_path / "series.parquet")
    config.model.kwargs["default_scale"] = 3e6
    task = SeriesTask(config)
    assert task.unit == 1e6
    module: Any = task.build_model().eval()
    scale = module._scaled(module._unpack(torch.zeros(2, task.blueprint.packing.size)))[2]
    torch.testing.assert_close(scale, torch.full_like(scale, 3e6))


def test_customary_methods_follow_the_unit(tmp_path: Path) -> None:
    found = []
    for unit in (1.0, 1e-9):
        path = write_series(tmp_path / f"{unit:g}.parquet")
        frame = pd.read_parquet(path)
        frame["target"] *= unit
        frame.to_parquet(path)
        config = tree(path).task
        assert isinstance(config, ForecastingConfig)
        config = config.model_copy(update={"baselines": ["seasonal_naive", "theta"]})
        found.append({name: each.outputs / unit for name, each in SeriesTask(config).evaluator.baselines().items()})
    assert list(found[0]) == list(found[1])
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-3, atol=1e-3)


def test_targets_whose_squares_are_out_of_range_are_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path / "series.parquet")
    frame = pd.read_parquet(path)
    frame["target"] *= np.float64(1e-25)
    frame.to_parquet(path)
    with pytest.raises(
        ConfigError, match=r"series 'low': its target has a standard deviation of 7.*e-26; give the targets"
    ):
        SeriesTask(tree(path).task)  # type: ignore[arg-type]
