"""Networks by name: they fit the series, train, sample, and have the losses of GluonTS."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small_forecasts import SMALL
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.forecasting.anchors import LinearAnchor, Units
from proxscore.forecasting.blueprint import Blueprint
from proxscore.forecasting.features import Features
from proxscore.forecasting.network import ForecastNetwork
from proxscore.forecasting.networks import NAMES, plan
from proxscore.forecasting.windows import FOLD, Panel, Windows, training_index

HORIZON, CONTEXT = 6, 24


def prepared(name: str, series: list[dict[str, Any]], likelihood: str = "student_t") -> tuple[Blueprint, Windows]:
    blueprint = plan(
        name,
        SMALL[name],
        frequency="h",
        horizon=HORIZON,
        context=CONTEXT,
        features=Features.of(series),
        likelihood=likelihood,
        anchor="linear" if name == "MLP" else None,
    )
    panel = Panel(series, blueprint.transformation, blueprint.packing, HORIZON)
    return blueprint, Windows(panel, training_index([len(entry["target"]) for entry in series], HORIZON, past=CONTEXT))


def built(blueprint: Blueprint, windows: Windows | None = None) -> ForecastNetwork:
    """With the anchor that it takes, if it does: nothing but the last value."""
    anchored = blueprint.packing.start(FOLD) is not None
    return blueprint.build(windows, anchor=LinearAnchor(Units(1, 1, 0.0), CONTEXT, HORIZON) if anchored else None)


def batch(windows: Windows, rows: int = 32) -> tuple[Tensor, Tensor]:
    return windows.__getitems__(np.linspace(0, len(windows) - 1, rows).astype(int).tolist())


def refused(name: str, kwargs: dict[str, Any] | None = None, **other: Any) -> str:
    settings: dict[str, Any] = {"frequency": "h", "horizon": HORIZON, "context": CONTEXT, "features": Features()}
    with pytest.raises(ConfigError) as caught:
        plan(name, kwargs or {}, **{**settings, **other})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("likelihood", ["student_t", "normal"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("Koopa", "MLP")])
def test_the_nll_is_the_loss_of_gluonts(name: str, likelihood: str, entries: Callable[..., Any]) -> None:
    """GluonTS averages over observed steps; we sum. DeepAR's also has the steps of the context, unless told otherwise."""
    blueprint, windows = prepared(name, entries(features=True), likelihood)
    network = built(blueprint, windows).eval()
    inputs, targets = batch(windows)
    fields = blueprint.packing.unpack(inputs)
    fields.pop("future_target", None)
    future = {"future_target": targets[:, 0], "future_observed_values": targets[:, 1]}
    net: Any = network.net
    if blueprint.autoregressive:
        expected = net.loss(**fields, **future, future_only=True, aggregate_by=torch.sum)
    else:
        expected = net.loss(**fields, **future) * targets[:, 1].sum(1)
    nll = network.likelihood.nll(network(inputs), targets)
    torch.testing.assert_close(nll, expected, rtol=1e-4, atol=1e-4)
    assert (targets[:, 1] == 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_lowers_the_loss_and_the_state_goes_into_a_fresh_network(
    name: str, entries: Callable[..., Any], tmp_path: Any
) -> None:
    torch.manual_seed(0)
    blueprint, windows = prepared(name, entries(features=True))
    network = built(blueprint, windows)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-2)
    held = batch(windows, 64)

    def loss() -> float:
        network.eval()
        with torch.no_grad():
            return float(network.likelihood.nll(network(held[0]), held[1]).mean())

    before = loss()
    network.train()
    for items in torch.randperm(len(windows)).split(32):
        inputs, targets = windows.__getitems__(items.tolist())
        optimizer.zero_grad()
        network.likelihood.nll(network(inputs), targets).mean().backward()
        optimizer.step()
    after = loss()
    assert np.isfinite([before, after]).all()
    assert after < before - 0.5, (before, after)
    torch.save(network.state_dict(), tmp_path / "state.pt")
    fresh = built(blueprint).eval()
    assert not torch.equal(fresh(held[0]), network(held[0]))
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(fresh(held[0]), network(held[0]), rtol=0, atol=0)


@pytest.mark.parametrize("likelihood", ["student_t", "normal"])
@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_first_step_of_the_outputs(name: str, likelihood: str, entries: Callable[..., Any]) -> None:
    """The first step of an autoregressive network conditions on no future target either."""
    blueprint, windows = prepared(name, entries(), likelihood)
    network = built(blueprint, windows).eval()
    inputs, _ = batch(windows, 4)
    samples = network.sample(inputs, 1500, torch.Generator().manual_seed(0))
    assert samples.shape == (1500, 4, HORIZON)
    assert not samples.requires_grad
    outputs = network(inputs)[:, 0].detach().double().numpy()
    family = stats.t if likelihood == "student_t" else stats.norm
    uniform = family(*outputs.T).cdf(samples[:, :, 0].double().numpy())
    assert min(stats.kstest(column, "uniform").pvalue for column in uniform.T) > 1e-3
    again = network.sample(inputs, 1500, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, samples, rtol=0, atol=0)


def test_samples_of_deepar_are_those_of_gluonts_and_use_no_future_target(entries: Callable[..., Any]) -> None:
    blueprint, windows = prepared("DeepAR", entries())
    network = built(blueprint).eval()
    assert network.autoregressive
    inputs, _ = batch(windows, 3)
    fields = blueprint.packing.unpack(inputs)
    changed = blueprint.packing.pack({**fields, "future_target": torch.full_like(fields["future_target"], torch.nan)})
    samples = network.sample(changed, 400, torch.Generator().manual_seed(0))
    assert samples.isfinite().all()
    del fields["future_target"]
    net: Any = network.net
    with torch.no_grad():
        theirs = net(**fields, num_parallel_samples=400).movedim(1, 0)
    for row in range(3):
        for step in (0, HORIZON - 1):
            assert stats.ks_2samp(samples[:, row, step], theirs[:, row, step]).pvalue > 1e-3
    # Teacher forcing: a step's parameters depend on targets before it, and on none from it on.
    later = blueprint.packing.unpack(inputs)["future_target"].clone()
    later[:, 3:] += 100
    moved = network(blueprint.packing.pack({**blueprint.packing.unpack(inputs), "future_target": later}))
    same = (moved == network(inputs)).all(-1).all(0)
    assert same.tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_in_units_of_the_target(name: str, entries: Callable[..., Any]) -> None:
    """All of them scale their windows: of a series ten times as large, location and scale are about ten times as large."""
    series = entries((120,))
    blueprint, windows = prepared(name, series)
    series[0]["target"] = 10 * series[0]["target"]
    _, larger = prepared(name, series)
    torch.manual_seed(0)
    network = built(blueprint, windows).eval()
    with torch.no_grad():
        scale, ten = (network(batch(w, 8)[0])[..., 2] for w in (windows, larger))
    assert ((ten / scale > 5) & (ten / scale < 20)).all()


@pytest.mark.parametrize("name", NAMES)
def test_draws_of_weights_go_through_functional_calls(name: str, entries: Callable[..., Any]) -> None:
    blueprint, windows = prepared(name, entries())
    network = built(blueprint, windows).eval()
    inputs, _ = batch(windows, 3)
    other = {key: p.detach() + 0.01 for key, p in network.named_parameters()}
    by_call = torch.func.functional_call(network, other, (inputs,))
    with torch.no_grad():
        for key, p in network.named_parameters():
            p.copy_(other[key])
    torch.testing.assert_close(by_call, network(inputs), rtol=1e-5, atol=1e-5)


def test_koopa_takes_its_filter_from_the_training_windows(entries: Callable[..., Any]) -> None:
    blueprint, windows = prepared("Koopa", entries())
    name = "net.point.dominant"
    fitted = built(blueprint, windows).state_dict()[name]
    assert fitted.nonzero().flatten().tolist()[0] == 1  # a daily season is one cycle in 24 hours; 0 is the mean
    assert built(blueprint).state_dict()[name].nonzero().flatten().tolist()[0] == 0
    with torch.device("meta"):
        network = built(blueprint, windows)
    network.to_empty(device="cpu")
    for member in network.modules():
        if hasattr(member, "reset_parameters"):
            member.reset_parameters()
    torch.testing.assert_close(network.state_dict()[name], fitted)


def test_planning_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    plan("DeepAR", SMALL["DeepAR"], frequency="h", horizon=HORIZON, context=CONTEXT, features=Features())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_network_does_not_take_is_left_out_with_a_warning(
    entries: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepared("TFT", entries(features=True))
        assert not caplog.messages
        prepared("DLinear", entries(features=True))
        prepared("TiDE", entries(features=True))
    assert caplog.messages == [
        "DLinear takes no known, past, categories, real features of the series: they are left out",
        "TiDE takes no past features of the series: they are left out",
    ]


def test_unknown_names_and_keywords_are_refused_with_the_nearest() -> None:
    assert "task.model.name is 'patchtst', which is not known; nearest: PatchTST" in refused("patchtst")
    assert "one of DLinear, DeepAR" in refused("resnet")
    assert "task.model.likelihood is 'student'" in refused("DLinear", likelihood="student")
    assert "task.model.kwargs.hiden_size is no keyword of DeepAR; nearest: hidden_size" in refused(
        "DeepAR", {"hiden_size": 3}
    )
    assert "task.model.kwargs.lr: DeepAR has it from the data or another setting" in refused("DeepAR", {"lr": 0.1})
    assert "task.model.kwargs.blcks is no keyword of Koopa; nearest: blocks" in refused("Koopa", {"blcks": 3})
    assert "leave it out" in refused("Koopa", {"horizon": 3})


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("PatchTST", {"nhead": 3}),
        ("PatchTST", {"patch_len": 99}),
        ("DLinear", {"kernel_size": 4}),
        ("DeepAR", {"hidden_size": "many"}),
        ("Koopa", {"segment": 7}),
        ("Koopa", {"dynamic_dim": "many"}),
    ],
)
def test_values_that_a_network_refuses_are_one_line_with_the_network(name: str, kwargs: dict[str, Any]) -> None:
    message = refused(name, kwargs)
    assert name in message
    assert str(next(iter(kwargs.values()))) in message


def test_an_unknown_frequency_is_refused() -> None:
    assert "DeepAR" in refused("DeepAR", frequency="fortnight")


def test_series_with_other_features_than_the_first_are_refused(entries: Callable[..., Any]) -> None:
    series = entries(features=True)
    assert Features.of(series) == Features(2, 1, (3, 2), 1)
    with pytest.raises(ConfigError, match=r"series s2: static category 0 is 2, outside 0\.\.1"):
        Features.of(series, (2, 2))
    del series[1]["feat_static_real"]
    with pytest.raises(ConfigError, match="series s1 carries"):
        Features.of(series)


def test_bfloat16_under_autocast_gives_single_precision_parameters(entries: Callable[..., Any]) -> None:
    for name in ("DLinear", "PatchTST", "TiDE", "Koopa"):
        blueprint, windows = prepared(name, entries())
        network: ForecastNetwork = built(blueprint, windows).eval()
        inputs, targets = batch(windows, 16)
        exact = network(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(inputs)
        assert outputs.dtype == torch.float32
        scale = exact[..., -1]
        assert ((outputs[..., 1] - exact[..., 1]).abs() < 0.2 * scale).float().mean() > 0.95
        assert network.likelihood.nll(outputs, targets).isfinite().all()
