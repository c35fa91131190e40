"""Which parameters the optimizer moves, with which settings, and what it keeps of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import Categorical, ForwardKL, Prior, ProximalScore

N = 50


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def loss(module: nn.Module, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)
    return Categorical().nll(module(x), y).mean()


def train(module: nn.Module, optimizer: ProximalScore, steps: int = 3) -> list[Tensor]:
    for step in range(steps):
        for _ in optimizer.draws():
            loss(module, step).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_groups_have_their_own_settings() -> None:
    """Each group moves exactly as it does in a run where its settings are everyone's, as long as the rest stays."""
    module = network()
    first = {"params": list(module[0].named_parameters("0")), "lr": 0.0, "initial_precision": 1e8}
    second = {"params": list(module[2].named_parameters("2")), "momentum": 0.3, "initial_precision": 2.0}
    optimizer = ProximalScore([first, second], N, prior=Prior(scale=0.1), metric="posterior", paired=True)
    before = module[0].weight.detach().clone()
    precision = [state["precision"].flatten()[0].item() for _, _, state in optimizer.sampled()]
    assert precision == pytest.approx([1e8 * N + 100, 1e8 * N + 100, 2.0 * N + 100, 2.0 * N + 100])
    train(module, optimizer)
    assert torch.equal(module[0].weight, before)

    other = network()
    second = {"params": list(other[2].named_parameters("2"))}
    optimizer = ProximalScore(
        [second], N, prior=Prior(scale=0.1), momentum=0.3, initial_precision=2.0, metric="posterior", paired=True
    )
    train(other, optimizer)
    torch.testing.assert_close(module[2].weight, other[2].weight, rtol=1e-4, atol=1e-5)


def test_one_group_and_a_group_for_each_parameter_are_the_same() -> None:
    whole, split = network(), network()
    first = train(
        whole, ProximalScore(whole.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    )
    second = train(
        split,
        ProximalScore(
            [{"params": [named]} for named in split.named_parameters()],
            N,
            metric="posterior",
            initial_precision=0.1,
            paired=True,
        ),
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("when", ["before", "after"])
def test_frozen_parameters_stay_and_the_others_move(when: str) -> None:
    """Frozen before or after the optimizer was built."""
    module = network()
    if when == "before":
        module[0].requires_grad_(False)
    optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    module[0].requires_grad_(False)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    after = train(module, optimizer)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    if when == "before":
        assert [name for name, _, _ in optimizer.sampled()] == ["2.weight", "2.bias"]


def test_a_tied_parameter_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encode, self.decode = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.encode(x) + self.decode(x)

    module, once = Tied(), Tied()
    optimizer = ProximalScore(
        module.named_parameters(remove_duplicate=False), N, metric="posterior", initial_precision=0.1, paired=True
    )
    assert [name for name, _, _ in optimizer.sampled()] == ["encode.weight"]
    reference = ProximalScore(
        [("encode.weight", once.encode.weight)], N, metric="posterior", initial_precision=0.1, paired=True
    )
    assert torch.equal(train(module, optimizer)[0], train(once, reference)[0])


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [({}, 5), ({"paired": False}, 5), ({"draws": 2}, 6), ({"metric": "adaptive"}, 6), ({"keep_mean": False}, 4)],
)
def test_weights_gradient_and_state_are_five_numbers_a_parameter(settings: dict[str, Any], numbers: int) -> None:
    """As documented, besides the few sums for the verdict: 5 P at rest, one more for several draws a step and with the adaptive
    metric; AdamW has 4 P."""
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(), N, **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings)
    )
    count = sum(parameter.numel() for parameter in module.parameters())
    for _ in optimizer.draws():
        loss(module).backward()
    states = optimizer.state_dict()["state"].values()
    held = [tensor for state in states for key, tensor in state.items() if key not in ("probes", "step")]
    held += [tensor for p in module.parameters() for tensor in (p, p.grad) if tensor is not None]
    means = sum(tensor.numel() for name, tensor in optimizer.prior.mean.items())
    assert sum(tensor.numel() for tensor in held) == numbers * count + means  # a prior mean of a norm's scale is kept
    assert len({tensor.data_ptr() for tensor in held}) == len(held)


# ------------------------------------------------------------ parameters that are not sampled


def adam_reference(module: nn.Module, steps: int, lr: float, pull: float, modes: int) -> list[Tensor]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0)
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(modes):
            (loss(module, step) / modes).backward()
        for parameter in module.parameters():
            assert parameter.grad is not None
            parameter.grad += pull * parameter.detach() / N
        optimizer.step()
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize(("settings", "modes"), [({}, 2), ({"paired": False}, 1), ({"draws": 2}, 4)])
def test_where_nothing_is_sampled_the_optimizer_is_adam_on_the_log_joint(settings: dict[str, Any], modes: int) -> None:
    """Point estimates: AdamW without weight decay on the loss plus the prior's (theta^2 / 2 s^2) / N."""
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(),
        N,
        prior=Prior(scale=0.5, point=["*"]),
        point_lr=0.01,
        **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings),
    )
    assert not list(optimizer.sampled())
    result = train(module, optimizer, steps=5)
    torch.testing.assert_close(result, adam_reference(network(), 5, 0.01, 0.5**-2, modes), rtol=1e-5, atol=1e-6)


def test_point_biases_move_by_adam_and_are_never_perturbed() -> None:
    module = network()
    prior = Prior(biases="point")
    optimizer = ProximalScore(
        module.named_parameters(), N, prior=prior, point_lr=0.02, metric="posterior", initial_precision=0.1, paired=True
    )
    biases = [module[0].bias.detach().clone(), module[2].bias.detach().clone()]
    for _ in optimizer.draws():
        assert torch.equal(module[0].bias, biases[0])
        loss(module).backward()
    optimizer.step()
    # Adam's first step has length lr in every coordinate, whatever the gradient.
    for bias, before in zip((module[0].bias, module[2].bias), biases, strict=True):
        torch.testing.assert_close((bias - before).abs(), torch.full_like(bias, 0.02), rtol=1e-3, atol=0)
    assert [name for name, _, _ in optimizer.sampled()] == ["0.weight", "2.weight"]


def test_the_body_is_trained_by_adam_when_only_the_last_layer_is_sampled() -> None:
    """With the last layer held at its mean by a huge precision and no step, the body moves exactly as under Adam."""
    module, other = network(), network()
    optimizer = ProximalScore(
        module.named_parameters(), N, prior=Prior(scale=1e3, select="last_layer"), initial_precision=1e14,
        penalty=ForwardKL(precision=1e30, mean=4.5), lr=1.0, point_lr=0.01, paired=False,
    metric="posterior")  # fmt: skip
    assert [name for name, _, _ in optimizer.sampled()] == ["2.weight", "2.bias"]
    train(module, optimizer, steps=4)
    reference = torch.optim.AdamW(other[0].parameters(), lr=0.01, weight_decay=0)
    for step in range(4):
        reference.zero_grad()
        loss(other, step).backward()
        reference.step()
    torch.testing.assert_close(module[2].weight, other[2].weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(list(module[0].parameters()), list(other[0].parameters()), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------ bad settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_size": 0}, "data_size is 0"),
        ({"data_size": float("nan")}, "data_size is nan"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"draws": 0}, "draws is 0"),
        ({"max_skipped_steps": 0}, "max_skipped_steps is 0"),
        ({"max_log_precision_step": 0.0}, r"max_log_precision_step is 0\.0"),
        ({"max_mean_step": -2}, "max_mean_step is -2"),
        ({"point_lr": 0}, "point_lr is 0"),
        ({"lr": -0.1}, r"lr is -0\.1"),
        ({"momentum": 1.0}, r"momentum is 1\.0"),
        ({"momentum": -0.5}, r"momentum is -0\.5"),
        ({"initial_precision": 0}, "initial_precision is 0"),
        ({"prior": Prior(mean={"3.weight": torch.zeros(1)})}, r"prior\.mean names '3\.weight'"),
        (
            {"prior": Prior(mean={"2.bias": torch.zeros(1)})},
            r"prior\.mean of 2\.bias has shape \(1,\); it must be \(3,\)",
        ),
        ({"prior": Prior(select="3.*")}, r"prior\.select: the pattern '3\.\*'"),
    ],
)
def test_bad_settings_are_named_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ProximalScore(
            network().named_parameters(),
            **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | {"data_size": N} | settings),
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["lr", "momentum", "initial_precision"])
def test_bad_settings_of_a_group_are_named_in_one_line(setting: str) -> None:
    group = {"params": list(network().named_parameters()), setting: -1.0}
    with pytest.raises(ValueError, match=f"^{setting} is -1.0"):
        ProximalScore([group], N, metric="posterior", initial_precision=0.1, paired=True)


def test_parameters_that_cannot_be_trained_are_refused() -> None:
    module = network()
    with pytest.raises(ValueError, match="params is empty"):
        ProximalScore([], N, metric="posterior", initial_precision=0.1, paired=True)
    with pytest.raises(ValueError, match=r"pass model\.named_parameters\(\), not model\.parameters\(\)"):
        ProximalScore(module.parameters(), N, metric="posterior", initial_precision=0.1, paired=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        ProximalScore(
            network().requires_grad_(False).named_parameters(),
            N,
            metric="posterior",
            initial_precision=0.1,
            paired=True,
        )
    with pytest.raises(ValueError, match=r"parameter 0\.weight is torch\.bfloat16"):
        ProximalScore(module.bfloat16().named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)


def test_parameters_that_cannot_be_cut_into_flat_pieces_are_refused_by_name() -> None:
    module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="parameter weight is not contiguous"):
        ProximalScore(module.named_parameters(), 100, metric="posterior", initial_precision=0.1, paired=True)


def test_parameters_cannot_be_added_after_construction() -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = ProximalScore([("weight", module.weight)], 100, metric="posterior", initial_precision=0.1, paired=True)
    with pytest.raises(ValueError, match="cannot be added later"):
        optimizer.add_param_group({"params": [("bias", module.bias)]})
