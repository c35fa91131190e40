"""Koopa: the filter, the fitted operator, forecasts of systems that a linear operator describes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.forecasting.koopa import (
    Koopa,
    LocalDynamics,
    dominant_frequencies,
    least_squares_operator,
    normalise,
    split_frequencies,
)

SMALL = {"dynamic_dim": 16, "hidden_dim": 32, "blocks": 2}


def wave(length: int, cycles: float, phase: float = 0.0) -> Tensor:
    return torch.sin(2 * math.pi * cycles * torch.arange(length) / length + phase)


@pytest.mark.parametrize("length", [24, 25])
def test_the_two_parts_add_up_to_the_input_and_are_orthogonal(length: int) -> None:
    x = torch.randn(3, length, 2, dtype=torch.float64)
    dominant = torch.rand(length // 2 + 1) < 0.4
    invariant, variant = split_frequencies(x, dominant)
    torch.testing.assert_close(invariant + variant, x)
    torch.testing.assert_close((invariant * variant).sum(1), torch.zeros(3, 2, dtype=torch.float64))


def test_frequencies_go_where_the_mask_says() -> None:
    slow, fast = wave(48, 2), wave(48, 9, 0.3)
    dominant = torch.zeros(25, dtype=torch.bool)
    dominant[9] = True
    invariant, variant = split_frequencies((slow + fast)[None, :, None], dominant)
    torch.testing.assert_close(invariant[0, :, 0], fast, atol=1e-5, rtol=0)
    torch.testing.assert_close(variant[0, :, 0], slow, atol=1e-5, rtol=0)


def test_the_dominant_frequencies_are_those_of_the_data_whatever_their_scale() -> None:
    phases = torch.rand(64) * 2 * math.pi
    values = torch.stack([wave(40, 3, p) + 0.5 * wave(40, 7, 2 * p) for p in phases.tolist()])[:, :, None]
    values = values * torch.logspace(-2, 4, 64)[:, None, None] + 1000
    batches = [(part, torch.ones_like(part)) for part in values.split(10)]
    found = dominant_frequencies(batches, 40, alpha=0.1)
    assert found.nonzero().flatten().tolist() == [3, 7]
    model = Koopa(40, 10, alpha=0.1, **SMALL)
    model.set_filter(batches)
    torch.testing.assert_close(model.state_dict()["dominant"], found)


@pytest.mark.parametrize(("steps", "dim"), [(40, 5), (4, 12)])
def test_the_operator_is_the_ridge_solution_of_numpy(steps: int, dim: int) -> None:
    x, y = torch.randn(2, 3, steps, dim, dtype=torch.float64)
    ridge = 1e-5 * x.square().sum((1, 2)) + 1e-10
    for operator, a, b, r in zip(least_squares_operator(x, y), x, y, ridge, strict=True):
        stacked = np.vstack([a.numpy(), r.sqrt().item() * np.eye(dim)])
        expected = np.linalg.lstsq(stacked, np.vstack([b.numpy(), np.zeros((dim, dim))]), rcond=None)[0]
        np.testing.assert_allclose(operator.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_a_known_linear_system_is_recovered_and_continued() -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.manual_seed(0)))[0]
    states = [torch.randn(1, 6, dtype=torch.float64)]
    for _ in range(59):
        states.append(states[-1] @ rotation)
    orbit = torch.stack(states, 1).float()
    found = least_squares_operator(orbit[:, :39], orbit[:, 1:40])
    torch.testing.assert_close(found[0], rotation.float(), atol=1e-2, rtol=0)
    reconstruction, forecast = LocalDynamics(20)(orbit[:, :40])
    torch.testing.assert_close(reconstruction, orbit[:, :40], atol=5e-3, rtol=0)
    torch.testing.assert_close(forecast, orbit[:, 40:], atol=5e-2, rtol=0)


def test_the_operator_is_fitted_in_single_precision_under_autocast() -> None:
    z = torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, forecast = LocalDynamics(3)(z)
    expected = LocalDynamics(3)(z)
    assert forecast.dtype == torch.float32
    torch.testing.assert_close((reconstruction, forecast), expected)
    assert LocalDynamics(3)(z.bfloat16())[1].dtype == torch.bfloat16


@pytest.mark.parametrize("case", ["constant", "alike", "missing", "huge"])
def test_gradients_are_finite_for_degenerate_windows(case: str) -> None:
    x, observed = torch.randn(3, 24, 1), torch.ones(3, 24, 1)
    if case == "constant":
        x = torch.full_like(x, 7.0)
    if case == "alike":  # all segments of a window are equal, so that the operator's least-squares problem is singular
        x = x[:, :6].repeat(1, 4, 1)
    if case == "missing":
        observed[0], observed[1, :20] = 0, 0
    if case == "huge":
        x = 1e12 * x + 1e15
    model = Koopa(24, 13, segment=6, **SMALL)
    forecast, mean, scale = model(x, observed)
    (mean + scale * forecast).mean().backward()
    assert forecast.shape == (3, 13, 1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_gradients_of_the_operator_are_those_of_finite_differences() -> None:
    x, y = torch.randn(2, 1, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(least_squares_operator, (x, y))
    tall = torch.randn(1, 7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: LocalDynamics(4)(z)[1], (tall,))


def test_missing_values_count_nowhere() -> None:
    x, observed = 3 + torch.randn(2, 24, 1), (torch.rand(2, 24, 1) < 0.7).float()
    seen = x[observed.bool()].reshape(-1)[: int(observed[0].sum())]
    _, mean, scale = normalise(x, observed)
    torch.testing.assert_close(mean[0, 0, 0], seen.mean())
    torch.testing.assert_close(scale[0, 0, 0], (seen.var(correction=0) + 1e-5).sqrt())
    model = Koopa(24, 8, **SMALL).eval()
    other = torch.where(observed.bool(), x, torch.tensor(1e6))
    torch.testing.assert_close(model(x, observed), model(other, observed))


def test_a_forecast_moves_and_scales_with_its_window() -> None:
    model, x = Koopa(24, 8, channels=2, **SMALL).eval(), torch.randn(3, 24, 2)
    forecast, mean, scale = model(x)
    moved, moved_mean, moved_scale = model(100 * x - 500)
    torch.testing.assert_close(
        moved_mean + moved_scale * moved, 100 * (mean + scale * forecast) - 500, rtol=1e-3, atol=0.1
    )


def test_forecasts_of_a_linear_dynamical_system_beat_the_naive_ones_after_fitting() -> None:
    torch.manual_seed(0)
    time = torch.arange(600.0)
    series = torch.sin(2 * math.pi * time / 12) + 0.5 * torch.sin(2 * math.pi * time / 31 + 1)
    windows = series.unfold(0, 48 + 12, 1)[:, :, None]
    past, future = windows[:, :48], windows[:, 48:]
    model = Koopa(48, 12, segment=12, dropout=0.0, **SMALL)
    model.set_filter([(past[:400], torch.ones_like(past[:400]))])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)

    def forecast(rows: Tensor) -> Tensor:
        values, mean, scale = model(past[rows])
        return mean + scale * values

    for _ in range(150):
        rows = torch.randint(400, (64,))
        optimizer.zero_grad()
        (forecast(rows) - future[rows]).square().mean().backward()
        optimizer.step()
    held = torch.arange(460, len(windows))
    error = (forecast(held) - future[held]).square().mean()
    naive = (past[held, -12:] - future[held]).square().mean()  # the season of 12 before
    assert error < 0.25 * naive, (float(error), float(naive))


def test_functional_calls_depend_on_the_given_weights_alone_and_forward_sets_nothing() -> None:
    model, x = Koopa(24, 8, **SMALL).eval(), torch.randn(3, 24, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = dict(vars(model.dynamics))
    other = {name: p + 0.1 for name, p in model.named_parameters()}
    by_call = torch.func.functional_call(model, other, (x,))[0]
    torch.testing.assert_close(dict(model.state_dict()), before)
    assert vars(model.dynamics) == attributes
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(other[name])
    torch.testing.assert_close(model(x)[0], by_call)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_compiled_network_is_the_eager_one_in_one_graph(backend: str) -> None:
    torch.compiler.reset()
    model, x = Koopa(24, 8, segment=6, **SMALL).eval(), torch.randn(3, 24, 1)
    observed = (torch.rand(3, 24, 1) < 0.9).float()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x, observed), model(x, observed), atol=1e-5, rtol=1e-4)
    compiled(x, observed)[0].square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(x, observed)[0].square().mean().backward()
    torch.testing.assert_close(found, {name: p.grad for name, p in model.named_parameters()}, atol=1e-5, rtol=1e-3)


def test_a_segment_that_does_not_divide_the_context_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="segment is 7; it must divide the context of 24 into two or more: 1, 2, 3, 4"
    ):
        Koopa(24, 8, segment=7)
    with pytest.raises(ConfigError, match="segment is 24"):
        Koopa(24, 8, segment=24)
    with pytest.raises(ConfigError, match="alpha is 0"):
        Koopa(24, 8, alpha=0)
    with pytest.raises(ConfigError, match="blocks is 0"):
        Koopa(24, 8, blocks=0)
    assert Koopa(96, 48).segment == 48
    assert Koopa(25, 48).segment == 5
