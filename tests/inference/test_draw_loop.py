"""The draw loop: what the weights are inside and after it, and which ordinary training code it tolerates."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from proxscore.inference import Categorical, Prior, ProximalScore

N = 64
nll = Categorical().nll


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 6, generator=generator), torch.randint(3, (N,), generator=generator)


def snapshot(module: nn.Module, optimizer: ProximalScore) -> dict[str, Tensor]:
    """Weights, precisions and running scores."""
    result = {f"mean.{name}": parameter.detach().clone() for name, parameter in module.named_parameters()}
    for name, _, state in optimizer.sampled():
        result |= {f"precision.{name}": state["precision"].clone(), f"score.{name}": state["score"].clone()}
    return {name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", ""): t for name, t in result.items()}


def train(
    module: nn.Module, forward_backward: Callable[[nn.Module, Tensor, Tensor], Any], steps: int = 3, **settings: Any
) -> dict[str, Tensor]:
    optimizer = ProximalScore(
        module.named_parameters(), N, **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings)
    )
    for step in range(steps):
        x, y = batch(step)
        for _ in optimizer.draws():
            forward_backward(module, x, y)
        optimizer.step()
    return snapshot(module, optimizer)


def plain(module: nn.Module, x: Tensor, y: Tensor) -> None:
    nll(module(x), y).mean().backward()


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------ inside the loop


def test_a_pair_lies_symmetrically_about_the_mean_and_draws_are_plain_leaf_weights() -> None:
    module = network()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = ProximalScore(
        module.named_parameters(), N, draws=2, metric="posterior", initial_precision=0.1, paired=True
    )
    draws = []
    for _ in optimizer.draws():
        assert all(parameter.is_leaf and parameter.grad_fn is None for parameter in module.parameters())
        assert all(parameter.requires_grad for parameter in module.parameters())
        draws.append([parameter.detach().clone() for parameter in module.parameters()])
        plain(module, *batch())
    assert len(draws) == optimizer.evaluations_per_step == 4
    for mean, *pairs in zip(before, *draws, strict=True):
        torch.testing.assert_close(pairs[0] + pairs[1], 2 * mean)
        torch.testing.assert_close(pairs[2] + pairs[3], 2 * mean)
        assert not torch.equal(pairs[0], pairs[2])
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_step_leaves_the_mean_in_the_weights_and_no_gradients() -> None:
    module = network()
    optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    for _ in optimizer.draws():
        plain(module, *batch())
    optimizer.step()
    assert all(torch.equal(parameter, state["mean"]) for _, parameter, state in optimizer.sampled())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_equal_seeds_give_equal_draws_and_steps_and_other_seeds_do_not() -> None:
    first, again, other = (train(network(), plain, seed=seed) for seed in (3, 3, 4))
    assert equal(first, again)
    assert not equal(first, other)


# ------------------------------------------------------------ leaving the loop early


@pytest.mark.parametrize("evaluations", [0, 1])
@pytest.mark.parametrize("leave", ["exception", "break"])
def test_leaving_the_loop_restores_the_mean_bit_for_bit_and_the_next_step_refuses(leave: str, evaluations: int) -> None:
    module = network()
    optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    before = [parameter.detach().clone() for parameter in module.parameters()]

    def loop() -> None:
        for index in optimizer.draws():
            assert not torch.equal(before[0], next(module.parameters()))
            if index == evaluations:
                if leave == "break":
                    break
                raise KeyboardInterrupt
            plain(module, *batch())

    if leave == "break":
        loop()
    else:
        with pytest.raises(KeyboardInterrupt):
            loop()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    with pytest.raises(RuntimeError, match=r"step\(\) needs scores"):
        optimizer.step()


def test_a_loop_left_early_leaves_no_trace_in_later_steps() -> None:
    """Half a pair is folded into the running score when the second half fails: it must not count."""

    def run(interrupt: bool) -> dict[str, Tensor]:
        module = network()
        optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
        if interrupt:
            for index in optimizer.draws():
                if index == 1:
                    break
                plain(module, *batch(9))
        for step in range(2):
            for _ in optimizer.draws():
                plain(module, *batch(step))
            optimizer.step()
        return snapshot(module, optimizer)

    assert equal(run(interrupt=True), run(interrupt=False))


def test_scores_that_no_step_took_do_not_count() -> None:
    def run(loops: int) -> dict[str, Tensor]:
        module = network()
        optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
        for _ in range(loops):
            for _ in optimizer.draws():
                plain(module, *batch())
        optimizer.step()
        return snapshot(module, optimizer)

    assert equal(run(loops=1), run(loops=2))


# ------------------------------------------------------------ misuse


def test_step_without_draws_and_a_second_step_are_refused() -> None:
    module = network()
    optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    with pytest.raises(RuntimeError, match=r"step\(\) needs scores"):
        optimizer.step()
    for _ in optimizer.draws():
        plain(module, *batch())
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"step\(\) needs scores"):
        optimizer.step()


def test_a_draw_without_backward_is_refused() -> None:
    module = network()
    optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)

    def loop() -> None:
        for _ in optimizer.draws():
            module(batch()[0])

    with pytest.raises(RuntimeError, match=r"call backward\(\) inside the draws\(\) loop"):
        loop()


def test_clearing_gradients_between_the_halves_of_a_pair_is_refused() -> None:
    module = network()
    optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)

    def loop() -> None:
        for _ in optimizer.draws():
            module.zero_grad()
            plain(module, *batch())

    with pytest.raises(RuntimeError, match="gradients were cleared between the two draws of a pair"):
        loop()


def test_draws_within_draws_are_refused() -> None:
    optimizer = ProximalScore(network().named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    loop = optimizer.draws()
    next(loop)
    with pytest.raises(RuntimeError, match=r"draws\(\) within draws\(\)"):
        next(optimizer.draws())


def test_zero_grad_of_the_optimizer_does_no_harm_anywhere_in_the_loop() -> None:
    module = network()
    optimizer = ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    for step in range(3):
        optimizer.zero_grad()
        for _ in optimizer.draws():
            optimizer.zero_grad()
            plain(module, *batch(step))
        optimizer.zero_grad()
        optimizer.step()
    assert equal(snapshot(module, optimizer), train(network(), plain))


# ------------------------------------------------------------ ordinary training code


@pytest.mark.parametrize("paired", [True, False])
def test_micro_batches_of_unequal_size_equal_the_full_batch(paired: bool) -> None:
    def accumulate(module: nn.Module, x: Tensor, y: Tensor) -> None:
        for rows in torch.arange(N).split([7, 30, 27]):
            (nll(module(x[rows]), y[rows]).sum() / N).backward()

    double = torch.float64
    first = train(network().double(), lambda m, x, y: accumulate(m, x.to(double), y), paired=paired)
    second = train(network().double(), lambda m, x, y: plain(m, x.to(double), y), paired=paired)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)


def test_autocast_around_the_draw_loop_computes_with_each_draw() -> None:
    """Autocast caches its casts of the weights while it is active: each draw must drop them."""
    module = network()
    optimizer = ProximalScore(module.named_parameters(), N, initial_precision=0.05, metric="posterior", paired=True)
    x, y = batch()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in optimizer.draws():
            inside = module(x)
            with torch.autocast("cpu", enabled=False):
                expected = module(x)
            torch.testing.assert_close(inside.float(), expected, rtol=0.05, atol=0.1)
            nll(inside, y).mean().backward()
        optimizer.step()
        with torch.autocast("cpu", enabled=False):
            expected = module(x)
        torch.testing.assert_close(module(x).float(), expected, rtol=0.05, atol=0.1)


def test_autocast_around_each_forward_equals_autocast_around_the_loop_and_keeps_the_state_in_single_precision() -> None:
    def cast(module: nn.Module, x: Tensor, y: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = module(x)
        nll(output, y).mean().backward()

    each = train(network(), cast)
    with torch.autocast("cpu", torch.bfloat16):
        around = train(network(), plain)
    assert {tensor.dtype for tensor in (each | around).values()} == {torch.float32}
    assert equal(each, around)
    full = train(network(), plain)
    for name, value in each.items():
        if name.startswith("mean."):
            torch.testing.assert_close(value, full[name], rtol=0, atol=0.02)
    assert not equal(each, full)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_module_trains_as_the_plain_one(backend: str) -> None:
    module: Any = torch.compile(network(), backend=backend)
    assert_close(train(module, plain), train(network(), plain))


def test_activation_checkpointing_trains_as_the_plain_module() -> None:
    """The recomputation in backward must see the weights of its own draw."""

    def recompute(module: nn.Module, x: Tensor, y: Tensor) -> None:
        nll(checkpoint(module, x, use_reentrant=False), y).mean().backward()

    wrapped = network()
    for index in (0, 3):
        wrapped[index] = checkpoint_wrapper(wrapped[index], checkpoint_impl=CheckpointImpl.NO_REENTRANT)
    expected = train(network(), plain)
    assert_close(train(network(), recompute), expected)
    assert_close(train(wrapped, plain), expected)


@pytest.mark.parametrize("settings", [{}, {"paired": False}, {"draws": 2}])
def test_the_closure_form_equals_the_loop_form(settings: dict[str, Any]) -> None:
    module = network()
    optimizer = ProximalScore(
        module.named_parameters(), N, **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings)
    )
    calls = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = nll(module(x), y).mean()
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    for step in range(3):
        x, y = batch(step)
        assert optimizer.step(closure) == calls[-1]
    assert len(calls) == 3 * optimizer.evaluations_per_step
    assert equal(snapshot(module, optimizer), train(network(), plain, **settings))


def test_a_parameter_outside_the_forward_is_moved_by_its_prior_alone() -> None:
    """Its likelihood is flat: the mean decays towards the prior mean, the precision falls towards the prior's."""
    module = network()
    module.unused = nn.Parameter(torch.ones(5))
    optimizer = ProximalScore(
        module.named_parameters(),
        N,
        prior=Prior(scale=0.5, norms="informative"),
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    precision = optimizer.state[module.unused]["precision"].clone()
    for _ in range(5):
        for _ in optimizer.draws():
            nll(nn.Sequential(*list(module.children()))(batch()[0]), batch()[1]).mean().backward()
        optimizer.step()
    assert ((module.unused > 0) & (module.unused < 1)).all()
    assert (optimizer.state[module.unused]["precision"] != precision).all()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("fails", [False, True])
def test_gradients_are_released_when_the_step_or_an_error_ends_the_loop(fails: bool, clip_norm: float | None) -> None:
    module = network()
    optimizer = ProximalScore(module.named_parameters(), N, paired=True, draws=2, clip_norm=clip_norm)
    held = []
    try:
        for index in optimizer.draws():
            if fails and index == 3:
                raise KeyboardInterrupt
            plain(module, *batch())
            held.append(weakref.ref(module[0].weight.grad))
        optimizer.step()
    except KeyboardInterrupt:
        optimizer.zero_grad()
    assert len(held) == (3 if fails else 4)
    assert not any(gradient() is not None for gradient in held)
