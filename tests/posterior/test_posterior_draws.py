"""Draws from a posterior: seeded, of the right moments, and put into a module only for a while."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference import Categorical, Prior, ProximalScore
from proxscore.posterior import Posterior

SIZE = 100_000


def gaussian(mean: float, deviation: float, size: int = SIZE) -> Posterior:
    return Posterior({"weight": torch.full((size,), mean)}, {"weight": torch.full((size,), deviation**-2)})


def trained() -> tuple[nn.Sequential, ProximalScore]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = ProximalScore(
        module.named_parameters(),
        50,
        prior=Prior(norms="point"),
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    for _ in range(3):
        for _ in optimizer.draws():
            Categorical().nll(module(torch.randn(10, 4)), torch.randint(3, (10,))).mean().backward()
        optimizer.step()
    return module, optimizer


def test_draws_have_the_mean_and_precision_of_the_posterior() -> None:
    """100,000 coordinates: mean and variance within 5 standard errors."""
    weights = gaussian(1.5, 0.2).draw(0)["weight"].double()
    assert abs(weights.mean() - 1.5) < 5 * 0.2 * SIZE**-0.5
    assert abs(weights.var() / 0.04 - 1) < 5 * (2 / SIZE) ** 0.5


def test_every_coordinate_varies_over_draws_with_its_own_precision() -> None:
    """200 draws of 300 coordinates; standardised, their mean and variance are within 5 standard errors."""
    generator = torch.Generator().manual_seed(0)
    mean, precision = torch.randn(300, generator=generator), torch.rand(300, generator=generator) * 1000 + 1
    posterior = Posterior({"weight": mean}, {"weight": precision})
    draws = torch.stack([posterior.draw(index)["weight"] for index in range(200)])
    z = ((draws - mean) * precision.sqrt()).double()
    assert z.mean(0).abs().max() < 5 / 200**0.5
    assert (z.pow(2).mean(0) - 1).abs().max() < 5 * (2 / 200) ** 0.5


def test_draws_are_a_function_of_seed_and_index_and_independent_otherwise() -> None:
    posterior = gaussian(0.0, 1.0)
    first = posterior.draw(3, seed=7)["weight"]
    assert torch.equal(first, gaussian(0.0, 1.0).draw(3, seed=7)["weight"])
    for other in (posterior.draw(4, seed=7)["weight"], posterior.draw(3, seed=8)["weight"]):
        assert abs((first * other).mean().item()) < 5 * SIZE**-0.5


def test_parameters_of_equal_shape_have_independent_noise() -> None:
    ones, zeros = torch.ones(SIZE), torch.zeros(SIZE)
    draw = Posterior({"a": zeros, "b": zeros}, {"a": ones, "b": ones}).draw(0)
    assert abs((draw["a"] * draw["b"]).mean().item()) < 5 * SIZE**-0.5


def test_a_draw_leaves_the_posterior_and_its_point_estimates_as_they_are() -> None:
    module, optimizer = trained()
    posterior = Posterior.of(module, optimizer)
    before = {name: value.clone() for name, value in posterior.mean.items()}
    draw = posterior.draw(0)
    assert set(posterior.precision) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    for name, value in draw.items():
        assert torch.equal(value, before[name]) == (name not in posterior.precision)
        assert torch.equal(posterior.mean[name], before[name])


def test_the_posterior_of_a_training_refers_to_its_mean_precision_and_buffers() -> None:
    module, optimizer = trained()
    posterior = Posterior.of(module, optimizer)
    assert posterior.family == "mean_field"
    assert set(posterior.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, parameter, state in optimizer.sampled():
        assert torch.equal(posterior.mean[name], parameter)
        assert posterior.precision[name] is state["precision"]
    point = Posterior.of(module, torch.optim.AdamW(module.parameters()))
    assert point.family == "point"
    assert all(torch.equal(point.draw(0)[name], parameter) for name, parameter in module.named_parameters())


@pytest.mark.parametrize("own", [True, False], ids=["the module in training", "another module"])
def test_use_puts_a_draw_into_the_module_and_takes_it_out_again(own: bool) -> None:
    """Also when the posterior's mean is the very memory of the module's weights."""
    module, optimizer = trained()
    posterior = Posterior.of(module, optimizer)
    target = module if own else trained()[0].requires_grad_(False)
    with torch.no_grad():
        if not own:
            target[0].weight.zero_()
    before = {name: parameter.detach().clone() for name, parameter in target.named_parameters()}
    mean = {name: value.clone() for name, value in posterior.mean.items()}

    def weights() -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in target.named_parameters()}

    expected = posterior.draw(2, seed=5)
    with posterior.use(target, 2, seed=5):
        inside = weights()
    with posterior.use(target):
        at_mean = weights()
    for name in before:
        assert torch.equal(inside[name], expected[name])
        assert torch.equal(at_mean[name], mean[name])
        assert torch.equal(weights()[name], before[name])
        assert torch.equal(posterior.mean[name], mean[name])


def test_use_restores_the_weights_when_the_body_fails() -> None:
    module, optimizer = trained()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(ZeroDivisionError), Posterior.of(module, optimizer).use(module, 0):
        _ = 1 / 0
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), r"0\.weight is \(6, 4\) there, \(5, 4\) in the model"),
        (nn.Sequential(nn.Linear(4, 6)), r"1\.weight is \(6,\) there, no such parameter in the model"),
        (
            nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3), nn.Linear(3, 3)),
            r"4\.weight is no such parameter there, \(3, 3\) in the model",
        ),
    ],
)
def test_another_architecture_is_refused_by_its_first_parameter(other: nn.Module, message: str) -> None:
    module, optimizer = trained()
    posterior = Posterior.of(module, optimizer)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    with pytest.raises(ConfigError, match=message) as error, posterior.use(other, 0):
        pass
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=message):
        posterior.load_into(other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
