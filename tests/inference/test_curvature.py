"""The initial precision that data suggest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import Categorical, ProximalScore
from proxscore.inference.curvature import initial_precision, squared_gradients


def batches(count: int, rows: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(rows, 4, generator=generator), torch.randint(3, (rows,), generator=generator))
        for _ in range(count)
    ]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def test_it_estimates_the_mean_squared_gradient_of_single_rows() -> None:
    """Against the softmax regression's exact Fisher information at zero weights, (p - p^2) x^2 = 2/9 x^2 per row; the
    tolerance of 5 % is four standard errors of 400 batches of 50 rows."""
    layer = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(layer.weight)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 4, generator=generator)
    y = torch.randint(3, (20_000,), generator=generator)
    losses = ((Categorical().nll(layer(a), b).mean(), 50) for a, b in zip(x.split(50), y.split(50), strict=True))
    found = squared_gradients(layer, losses)
    assert found == {"weight": pytest.approx(2 / 9 * x.square().mean().item(), rel=0.05)}
    assert layer.weight.grad is None


def test_buffers_are_as_before_and_frozen_parameters_are_left_out() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    found = squared_gradients(module, ((Categorical().nll(module(x), y).mean(), 8) for x, y in batches(3, 8)))
    assert set(found) == {name for name, _ in module.named_parameters()} - {"0.weight"}
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name])


def test_the_estimate_is_kept_within_bounds() -> None:
    found = initial_precision({"none": 0.0, "some": 0.005, "much": 3.0}, safety=100, least=0.02, most=10)
    assert found == {"none": 0.02, "some": 0.5, "much": 10}


def test_the_optimizer_starts_each_tensor_at_its_own_precision() -> None:
    module = network()
    optimizer = ProximalScore(module.named_parameters(), 100, initial_precision={"0.weight": 3.0}, temperature=0.5)
    starts = {name: state["precision"] for name, _, state in optimizer.sampled()}
    prior = optimizer.prior.scale**-2
    assert starts["0.weight"].unique().item() == pytest.approx(3.0 * 200 + prior)
    assert starts["3.weight"].unique().item() == pytest.approx(0.1 * 200 + prior)  # not named: the default


def test_bad_values_are_refused_in_one_line() -> None:
    module = network()
    with pytest.raises(ValueError, match=r"initial_precision names '4\.weight', which is no trained parameter"):
        ProximalScore(module.named_parameters(), 100, initial_precision={"4.weight": 1.0})
    with pytest.raises(ValueError, match=r"initial_precision of 0\.weight is 0\.0; it must be positive"):
        ProximalScore(module.named_parameters(), 100, initial_precision={"0.weight": 0.0})
    with pytest.raises(ValueError, match="no batches"):
        squared_gradients(module, iter(()))
    x, y = batches(1, 8)[0]
    with pytest.raises(ValueError, match=r"the gradient of 0\.weight is not finite"):
        squared_gradients(module, iter([(Categorical().nll(module(x * float("nan")), y).mean(), 8)]))
