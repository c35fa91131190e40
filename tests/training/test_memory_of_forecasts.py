"""Every forecasting network is counted without its numbers, as it is with them, and the shipped configuration dry-runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "forecasting"))
from small_forecasts import tree, write_series

from proxscore import config as configuration
from proxscore.forecasting.networks import NAMES
from proxscore.forecasting.series_task import SeriesTask
from proxscore.training.preflight.dry_run import dry_run
from proxscore.training.preflight.memory import count_memory


@pytest.mark.parametrize("likelihood", ["student_t", "normal"])
@pytest.mark.parametrize("network", NAMES)
def test_a_network_is_counted_as_it_is(network: str, likelihood: str, tmp_path: Path) -> None:
    config = tree(write_series(tmp_path / "series.parquet"), network)
    model = config.task.model.model_copy(update={"likelihood": likelihood})
    task = SeriesTask(config.task.model_copy(update={"model": model}))  # type: ignore[arg-type]
    found = count_memory(config, config.method, task)
    module = task.build_model()
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters())
    known = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            saved[place] = max(saved.get(place, 0), tensor.numel() * tensor.element_size())
        return tensor

    inputs, targets = task.data.train.__getitems__(range(config.training.batch_size))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = task.likelihood.nll(module.train()(inputs), targets).sum()
    if network in ("DeepAR", "TFT"):  # what recurrent layers keep within is not seen on the meta device
        assert 0.2 * sum(saved.values()) < found.activations < 1.2 * sum(saved.values())
    else:
        assert found.activations == pytest.approx(sum(saved.values()), rel=0.15)
    del loss


def test_the_shipped_configuration_dry_runs() -> None:
    pytest.importorskip("pmdarima")
    path = Path(__file__).parents[2] / "jobs" / "configs" / "forecast_quickstart.yaml"
    config = configuration.load(path)
    text = dry_run(config)
    count = sum(parameter.numel() for parameter in SeriesTask(config.task).build_model().parameters())  # type: ignore[arg-type]
    assert f"model            {config.task.network}: {count:,} parameters" in text
    assert "likelihood       student_t, by the training targets (task.model.likelihood): " in text
    assert "activations of a micro-batch" in text
    assert "one step here" in text
