"""Windows without variation: forecasts are no more certain than a floor says, and all other windows are as they were."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from small_forecasts import tree, write_series

from proxscore.config import ConfigError, Section, parse
from proxscore.forecasting.networks import NAMES
from proxscore.forecasting.series_task import SeriesTask
from proxscore.forecasting.task import ForecastingConfig


@pytest.mark.parametrize("network", NAMES)
def test_a_forecast_of_zeros_is_as_uncertain_as_the_floor(network: str, tmp_path: Path) -> None:
    config = tree(write_series(tmp_path / "series.parquet"), network)
    task = SeriesTask(config.task)  # type: ignore[arg-type]
    frame = pd.read_parquet(tmp_path / "series.parquet")
    steps = frame.groupby("name").apply(lambda own: own["target"][:176].diff().abs().mean(), include_groups=False)
    assert task.scale_floor == pytest.approx(0.1 * steps.min(), rel=1e-4)
    torch.manual_seed(0)
    module = task.build_model().eval()
    without = task.blueprint.build(task.data.train, 0.0, task.unit, task.anchor).eval()
    without.load_state_dict(module.state_dict())
    inputs = task.data.test.__getitems__(range(6))[0]
    torch.testing.assert_close(module(inputs), without(inputs), rtol=1e-5, atol=1e-6)
    assert not module.floored(inputs).any()
    zeros = torch.zeros_like(inputs)
    observed = {field.name: torch.ones(6, *field.shape) for field in module.packing.fields if "observed" in field.name}
    zeros = module.packing.pack(module.packing.unpack(zeros) | observed)
    assert module.floored(zeros).all()
    ratio = (module(zeros)[..., -1] / module(inputs)[..., -1].mean()).mean()
    assert ratio > 1e-4
    if module.autoregressive:
        assert module.sample(zeros, 50).std(0).min() > 0.01 * task.scale_floor


def _sections(kind: type[Section]) -> list[type[Section]]:
    return [kind, *(inner for sub in kind.__subclasses__() for inner in _sections(sub))]


def test_a_text_is_a_list_of_one_wherever_texts_are_listed() -> None:
    import proxscore.experiments.sweep.settings  # noqa: F401 - more sections

    found = 0
    for section in _sections(Section):
        for name, field in section.model_fields.items():
            if field.annotation == list[str]:
                found += 1
                assert section._lists_of_one({name: "price", "other": "x"}) == {name: ["price"], "other": "x"}
    assert found >= 6
    task = {"kind": "forecasting", "data": {"kind": "table", "path": "x.csv", "id_columns": "shop"}, "baselines": "ets"}
    read = parse({"task": task}).task
    assert isinstance(read, ForecastingConfig)
    assert read.data.id_columns == ["shop"]  # type: ignore[union-attr]
    assert read.baselines == ["ets"]
    with pytest.raises(ConfigError, match=r"task\.baselines\.0 is 'etc'"):
        parse({"task": task | {"baselines": "etc"}})
