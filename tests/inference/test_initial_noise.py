"""The initial noise: relative to each tensor's weights, and no more than the network bears."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import Prior, ProximalScore
from proxscore.inference.initial import BEARABLE, INITIAL_NOISE, bearable_noise, initial_scales


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 3))


def test_scales_are_root_mean_squares_and_of_zeros_what_an_initialisation_has() -> None:
    module = network()
    with torch.no_grad():
        module[0].bias.zero_()
        module[3].weight.zero_()
        module[3].bias.zero_()
    scales = initial_scales(dict(module.named_parameters()))
    assert scales["0.weight"] == pytest.approx(module[0].weight.square().mean().sqrt().item())
    assert scales["0.bias"] == scales["0.weight"]  # its layer's weight
    assert scales["1.weight"] == 1.0
    assert scales["1.bias"] == 1.0  # zero; its layer's weight is one
    assert scales["3.weight"] == pytest.approx(50**-0.5)
    assert scales["3.bias"] == pytest.approx(50**-0.5)
    assert all(scale > 0 for scale in initial_scales({"alone": torch.zeros(3), "number": torch.zeros(())}).values())


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_draws_are_as_wide_as_the_weights_say_whatever_their_units(factor: float) -> None:
    module = network()
    with torch.no_grad():
        module[0].weight.mul_(factor)
    optimizer = ProximalScore(
        module.named_parameters(),
        1000,
        prior=Prior(scale=1e9),
        initial_precision=None,
        initial_noise=0.1,
        metric="posterior",
        paired=True,
    )
    weight = module[0].weight
    mean = weight.detach().clone()
    for _ in optimizer.draws():
        spread = ((weight.detach() - mean).square().mean() / mean.square().mean()).sqrt().item()
        module(torch.randn(8, 20)).sum().backward()
    assert spread == pytest.approx(0.1, rel=0.1)  # a thousand numbers: its relative error is 2 %


def test_no_posterior_starts_wider_than_its_prior() -> None:
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(),
        1000,
        prior=Prior(scale=1e-3),
        initial_precision=None,
        initial_noise=0.5,
        metric="posterior",
        paired=True,
    )
    for _, _, state in optimizer.sampled():
        assert (state["precision"] >= 1e6 * (1 - 1e-6)).all()


def passes(module: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], Iterator[Tensor]]:
    def losses() -> Iterator[Tensor]:
        for rows in torch.arange(len(inputs)).split(50):
            yield nn.functional.cross_entropy(module(inputs[rows]), targets[rows])

    return losses


def test_a_trained_network_bears_less_than_a_new_one_and_its_draws_cost_little() -> None:
    """Judged by draws of our own: the loss of 20 draws, one by one, against the mean's."""
    module = network()
    inputs = torch.randn(400, 20)
    targets = (inputs[:, 0] + inputs[:, 1] > 0).long() + (inputs[:, 2] > 1).long()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    losses = passes(module, inputs, targets)
    assert bearable_noise(module, losses, INITIAL_NOISE, 0) == INITIAL_NOISE
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())  # buffers, too
    adam = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(300):
        adam.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        adam.step()
    found = bearable_noise(module, losses, 2.0, 0)
    assert found < 2.0
    trained = [parameter.detach().clone() for parameter in module.parameters()]
    scales = initial_scales(dict(module.named_parameters()))
    generator, excess = torch.Generator().manual_seed(1), []
    with torch.no_grad():
        least = torch.stack(list(losses())).mean().item()
        for _ in range(20):
            for (name, parameter), mean in zip(module.named_parameters(), trained, strict=True):
                parameter.copy_(mean + found * scales[name] * torch.randn(mean.shape, generator=generator))
            excess.append(torch.stack(list(losses())).mean().item() - least)
    assert sum(excess) / 20 < 3 * BEARABLE  # one draw a batch decided: an error of a factor of two or so


def test_without_batches_or_with_a_loss_that_is_not_finite_it_is_refused() -> None:
    module = network()
    with pytest.raises(ValueError, match="initial_noise: no batches"):
        bearable_noise(module, lambda: iter(()), 0.1, 0)
    with pytest.raises(ValueError, match="loss of the first batches is not finite"):
        bearable_noise(module, lambda: iter([torch.tensor(float("nan"))]), 0.1, 0)


def test_a_batch_that_is_not_finite_is_left_out_and_none_that_is_finite_is_an_error() -> None:
    """The measured noise is that of the other batches, from the same draws."""
    module, generator = network(), torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(4, 32, 20, generator=generator), torch.randint(3, (4, 32), generator=generator)
    inputs[3] = float("nan")

    def losses(batches: int) -> Iterator[Tensor]:
        for index in range(batches):
            yield nn.functional.cross_entropy(100 * module(inputs[index]), targets[index])

    found = bearable_noise(module, lambda: losses(4), 10.0, 0)
    assert found == bearable_noise(module, lambda: losses(3), 10.0, 0) < 10
    inputs[:] = float("nan")
    with pytest.raises(ValueError, match="not finite at the start: look for bad inputs"):
        bearable_noise(module, lambda: losses(4), 10.0, 0)
