"""Windows against GluonTS's own instance splitters and loaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gluonts.transform import Transformation
from gluonts.transform.sampler import InstanceSampler

from proxscore.config import ConfigError
from proxscore.forecasting.blueprint import Blueprint
from proxscore.forecasting.features import Features
from proxscore.forecasting.networks import NAMES, plan
from proxscore.forecasting.windows import Packing, Panel, Windows, training_index

HORIZON, CONTEXT = 5, 24


class At(InstanceSampler):
    """Windows at given origins."""

    origins: list[int]

    def __call__(self, ts: np.ndarray) -> np.ndarray:
        return np.array(self.origins)


def blueprint(name: str, series: list[dict[str, Any]], horizon: int = HORIZON) -> Blueprint:
    return plan(name, {}, frequency="h", horizon=horizon, context=CONTEXT, features=Features.of(series))


def splitter(plan: Blueprint, origins: list[int]) -> Transformation:
    """The estimator's own, with a sampler that takes windows at these origins."""
    estimator: Any = plan.estimator
    estimator.train_sampler = At(origins=origins)
    if plan.name == "TFT":
        return estimator._create_instance_splitter("training")
    return estimator._create_instance_splitter(estimator.create_lightning_module(), "training")


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("Koopa", "MLP")])
def test_windows_are_those_of_the_gluonts_splitter(name: str, features: bool, entries: Callable[..., Any]) -> None:
    series = entries((900, 40), features=features)
    origins = [[0, 1, 23, 24, 600, 895], [0, 7, 35]]  # before, within and after the first full context
    found = blueprint(name, series)
    index = np.array([(s, o) for s, at in enumerate(origins) for o in at])
    inputs, targets = Windows(Panel(series, found.transformation, found.packing, HORIZON), index).__getitems__(
        list(range(len(index)))
    )
    assert inputs.dtype == targets.dtype == torch.float32
    assert inputs.shape == (9, found.packing.size)
    fields = found.packing.unpack(inputs)
    expected: list[dict[str, Any]] = []
    for entry, at in zip(series, origins, strict=True):
        transformed = list(found.transformation.apply([entry], is_train=True))
        expected += splitter(found, at).apply(transformed, is_train=True)
    assert set(fields) >= {"past_target"}
    for key, value in fields.items():
        wanted = torch.stack([torch.as_tensor(np.asarray(window[key])) for window in expected])
        torch.testing.assert_close(value, wanted.to(value.dtype), rtol=0, atol=0)
        assert value.dtype == (torch.long if key.endswith("cat") else torch.float32)
    for row, key in enumerate(("future_target", "future_observed_values")):
        wanted = torch.stack([torch.as_tensor(window[key]) for window in expected])
        torch.testing.assert_close(targets[:, row], wanted, rtol=0, atol=0)
    assert (targets[:, 1] == 0).any()


def test_koopa_sees_the_context_and_its_observed_flags(entries: Callable[..., Any]) -> None:
    series = entries((60,))
    found = blueprint("Koopa", series)
    windows = Windows(Panel(series, found.transformation, found.packing, HORIZON), np.array([[0, 30], [0, 4]]))
    fields = found.packing.unpack(windows.__getitems__([0, 1])[0])
    values = torch.from_numpy(series[0]["target"])
    torch.testing.assert_close(fields["past_target"][0], values[6:30].nan_to_num(0.0))
    torch.testing.assert_close(fields["past_observed_values"][0], values[6:30].isfinite().float())
    assert not fields["past_observed_values"][1, :20].any()


def test_packing_and_unpacking_are_inverse_and_keep_large_integers() -> None:
    packing = Packing.of(
        {
            "past_target": ((7,), torch.float),
            "feat_static_cat": ((2,), torch.long),
            "feat_dynamic_real": ((10, 3), torch.float),
            "past_feat_dynamic_cat": ((7, 0), torch.long),
        },
        horizon=3,
    )
    values = {
        "past_target": torch.randn(4, 7),
        "feat_static_cat": torch.randint(2**24, (4, 2)),
        "feat_dynamic_real": torch.randn(4, 10, 3),
    }
    packed = packing.pack(values)
    assert packed.shape == (4, packing.size) == (4, 7 + 2 + 30)
    assert packing.past == 7
    torch.testing.assert_close(packing.unpack(packed), values, rtol=0, atol=0)


def test_items_are_rows_of_batches_and_targets_of_missing_steps_are_zero(entries: Callable[..., Any]) -> None:
    series = entries()
    found = blueprint("DLinear", series)
    windows = Windows(
        Panel(series, found.transformation, found.packing, HORIZON), training_index([150, 170, 140], HORIZON)
    )
    inputs, targets = windows.__getitems__([5, 300, 5])
    torch.testing.assert_close(windows[300], (inputs[1], targets[1]))
    torch.testing.assert_close(inputs[0], inputs[2])
    every = windows.__getitems__(range(len(windows)))[1]
    assert not every[:, 0][every[:, 1] == 0].any()
    assert set(every[:, 1].unique().tolist()) == {0.0, 1.0}
    assert windows.series.bincount().tolist() == [145, 165, 135]
    loader = torch.utils.data.DataLoader(windows, batch_size=100, collate_fn=lambda batch: batch)
    assert sum(len(batch[0]) for batch in loader) == len(windows)


def test_windows_beyond_the_end_have_known_covariates_and_no_targets(entries: Callable[..., Any]) -> None:
    series = entries((80,), features=True, ahead=HORIZON)
    found = blueprint("TFT", series)
    panel = Panel(series, found.transformation, found.packing, HORIZON, beyond=HORIZON)
    inputs, targets = Windows(panel, np.array([[0, 80]])).__getitems__([0])
    assert not targets[:, :2].any()
    assert (targets[0, 2] == 0).all()  # the series, and the origin
    assert (targets[0, 3] == 80).all()
    fields = found.packing.unpack(inputs)
    torch.testing.assert_close(
        fields["feat_dynamic_real"][0, :, -2:].T, torch.from_numpy(series[0]["feat_dynamic_real"][:, 56:85])
    )
    torch.testing.assert_close(
        fields["past_feat_dynamic_real"][0].T, torch.from_numpy(series[0]["past_feat_dynamic_real"][:, 56:80])
    )
    with pytest.raises(ConfigError, match="series s0: its known covariates end after 85 steps; they are needed for 90"):
        Panel(series, found.transformation, found.packing, HORIZON, beyond=2 * HORIZON)


def test_a_window_that_reaches_beyond_its_series_is_refused(entries: Callable[..., Any]) -> None:
    series = entries((50, 60))
    found = blueprint("DLinear", series)
    panel = Panel(series, found.transformation, found.packing, HORIZON)
    Windows(panel, np.array([[1, 55], [0, 45]]))
    with pytest.raises(ConfigError, match="series s0: a window of 5 steps from step 46 on reaches beyond its 50 steps"):
        Windows(panel, np.array([[1, 55], [0, 46]]))


def test_the_training_index_ends_with_the_last_window_of_each_series() -> None:
    assert training_index([8, 6], 4, past=2).tolist() == [[0, 2], [0, 3], [0, 4], [1, 2]]
    assert training_index([10], 3, past=1, stride=3).tolist() == [[0, 1], [0, 4], [0, 7]]
    assert training_index([2], 4).shape == (0, 2)


def test_a_short_series_has_one_window_and_leaves_those_of_others_alone() -> None:
    assert training_index([20, 6, 20], 4, past=10).tolist() == (
        [[0, origin] for origin in range(10, 17)] + [[1, 2]] + [[2, origin] for origin in range(10, 17)]
    )
    with_short = training_index([500, 9, 400], 6, past=24, stride=5)
    for number, end in ((0, 500), (2, 400)):
        alone = training_index([end], 6, past=24, stride=5)[:, 1]
        assert np.array_equal(with_short[with_short[:, 0] == number][:, 1], alone)
