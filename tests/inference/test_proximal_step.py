"""One proximal step: momentum, averages over draws, trust region, schedules, and scores that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proxscore.inference import ForwardKL, Prior, ProximalScore, Schedule

N, SIZE = 30, 11


class Weights(nn.Module):
    """A bare vector of parameters; the tests choose its loss."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, size, dtype=torch.float64))


def gradients(count: int) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def state_of(optimizer: ProximalScore) -> dict[str, Tensor]:
    ((_, _, state),) = optimizer.sampled()
    return state


def closed_form_ratio(k: Tensor, kappa: float) -> Tensor:
    return ((k - kappa) + ((k - kappa) ** 2 + 4 * kappa).sqrt()) / 2


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_steps_with_momentum_are_those_of_the_formulas_written_out(paired: bool, temperature: float) -> None:
    """A loss that is linear in the weights has the gradient g at every draw, so that the whole iteration can be written
    out; the draw itself is read off the weights. Prior mean not zero, bias-corrected momentum, group lr."""
    model, mean0, scale, momentum, c = Weights(), 0.3, 0.4, 0.8, N / temperature
    kappa = (12.0, 2.0)
    optimizer = ProximalScore(
        model.named_parameters(),
        N,
        metric="posterior",
        prior=Prior(scale=scale, norms="informative", mean={"weight": torch.full((SIZE,), mean0)}),
        penalty=ForwardKL(*kappa),
        momentum=momentum,
        temperature=temperature,
        paired=paired,
        lr=0.5,
        initial_precision=0.5,
        max_mean_step=math.inf,
        max_log_precision_step=None,
    )
    mean0 = torch.tensor(mean0, dtype=torch.float32).double().item()
    mean, precision = model.weight.detach().clone(), torch.full((SIZE,), 0.5 * c + scale**-2, dtype=torch.float64)
    running = torch.zeros(SIZE, dtype=torch.float64)
    for t, g in enumerate(gradients(6), start=1):
        displacement = []
        for _ in optimizer.draws():
            displacement.append(model.weight.detach() - mean)
            (g * model.weight).sum().backward()
        optimizer.step()
        e = displacement[0]
        if paired:  # the two gradients are equal: no likelihood curvature
            k = 1 - (precision - scale**-2) * e**2
        else:
            k = c * g * e + scale**-2 / precision
        r = closed_form_ratio(k, kappa[0])
        running = momentum * running + (1 - momentum) * g
        u = (-c * running / (1 - momentum**t) - (mean - mean0) / scale**2) / precision.sqrt()
        mean = mean + u / (r + 2 * kappa[1] / 0.5) / precision.sqrt()
        precision = r * precision
        torch.testing.assert_close(state_of(optimizer)["precision"], precision, rtol=1e-9, atol=0)
        torch.testing.assert_close(model.weight.detach(), mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("paired", [True, False])
def test_several_draws_enter_a_step_as_the_average_of_their_statistics(paired: bool) -> None:
    model, draws, c = Weights(), 3, float(N)
    optimizer = ProximalScore(
        model.named_parameters(), N, metric="posterior", prior=Prior(scale=0.4), paired=paired, draws=draws, momentum=0.0,
        penalty=ForwardKL(1000.0, 4.5), max_log_precision_step=None, max_mean_step=1.0,
    initial_precision=0.1)  # fmt: skip
    mean, precision = model.weight.detach().clone(), state_of(optimizer)["precision"].clone()
    first = []
    for index in optimizer.draws():
        if not paired or index % 2 == 0:
            first.append(model.weight.detach() - mean)
        model.weight.pow(4).sum().backward()
    optimizer.step()

    def gradient(e: Tensor) -> Tensor:
        return 4 * (mean + e) ** 3

    if paired:
        scores = [(gradient(e) + gradient(-e)) / 2 for e in first]
        ks = [1 + e * (c * (gradient(e) - gradient(-e)) / 2 - (precision - 0.4**-2) * e) for e in first]
    else:
        scores = [gradient(e) for e in first]
        ks = [c * e * gradient(e) + 0.4**-2 / precision for e in first]
    assert len(first) == draws
    k, score = torch.stack(ks).mean(0), torch.stack(scores).mean(0)
    r = closed_form_ratio(k, 1000.0)
    torch.testing.assert_close(state_of(optimizer)["precision"], r * precision, rtol=1e-9, atol=0)
    u = (-c * score - mean / 0.4**2) / precision.sqrt()
    step = (u / (r + 9)).clamp(-1, 1) / precision.sqrt()
    torch.testing.assert_close(model.weight.detach(), mean + step, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_trust_region_bounds_both_steps_and_is_reached(sign: float) -> None:
    model = Weights()
    optimizer = ProximalScore(
        model.named_parameters(),
        N,
        metric="posterior",
        penalty=ForwardKL(0.1, 0.1),
        max_log_precision_step=0.2,
        max_mean_step=0.3,
        initial_precision=0.1,
        paired=True,
    )
    mean, precision = model.weight.detach().clone(), state_of(optimizer)["precision"].clone()
    for _ in optimizer.draws():
        (sign * 1e5 * model.weight.pow(2).sum() + 1e6 * model.weight.sum()).backward()
    optimizer.step()
    change = (state_of(optimizer)["precision"] / precision).log()
    torch.testing.assert_close(change.abs(), torch.full_like(change, 0.2), rtol=1e-6, atol=0)
    assert (change.sign() == sign).all()  # a maximum of the likelihood adds precision, a minimum takes it away
    whitened = (model.weight.detach() - mean) * precision.sqrt()
    torch.testing.assert_close(whitened.abs(), torch.full_like(whitened, 0.3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("lr", "step"), [(1.0, 0), (0.5, 0), (1.0, 3)])
def test_the_trust_region_of_the_mean_shrinks_with_its_schedule_and_lr(lr: float, step: int) -> None:
    """Otherwise a step that it binds would never shrink."""
    model, schedule = Weights(), Schedule("linear", length=4)
    penalty = ForwardKL(0.1, 0.1, mean_schedule=schedule)
    optimizer = ProximalScore(
        model.named_parameters(),
        N,
        metric="posterior",
        penalty=penalty,
        lr=lr,
        max_mean_step=0.3,
        initial_precision=0.1,
        paired=True,
    )
    optimizer.param_groups[0]["step"] = step
    mean, precision = model.weight.detach().clone(), state_of(optimizer)["precision"].clone()
    for _ in optimizer.draws():
        (1e6 * model.weight.sum()).backward()
    optimizer.step()
    whitened = (model.weight.detach() - mean) * precision.sqrt()
    torch.testing.assert_close(whitened, torch.full_like(whitened, -0.3 * lr * (1 - step / 4)), rtol=1e-6, atol=0)


def test_without_a_trust_region_steps_are_those_of_the_penalty_alone() -> None:
    model = Weights()
    optimizer = ProximalScore(
        model.named_parameters(),
        N,
        metric="posterior",
        penalty=ForwardKL(0.1, 0.1),
        max_log_precision_step=None,
        max_mean_step=math.inf,
        initial_precision=0.1,
        paired=True,
    )
    precision = state_of(optimizer)["precision"].clone()
    for _ in optimizer.draws():
        (1e5 * model.weight.pow(2).sum()).backward()
    optimizer.step()
    assert ((state_of(optimizer)["precision"] / precision).log() > 1).any()


def test_penalty_schedules_are_followed_step_by_step() -> None:
    """Linear to zero over four steps: afterwards nothing moves, however large the scores are."""
    linear = Schedule("linear", length=4)
    model = Weights()
    optimizer = ProximalScore(
        model.named_parameters(),
        N,
        metric="posterior",
        penalty=ForwardKL(20.0, 1.0, linear, linear),
        initial_precision=0.1,
        paired=True,
    )
    optimizer.monitor = True
    for step in range(6):
        before = model.weight.detach().clone(), state_of(optimizer)["precision"].clone()
        for _ in optimizer.draws():
            model.weight.pow(2).sum().backward()
        optimizer.step()
        moved = (
            not torch.equal(before[0], model.weight.detach()),
            not torch.equal(before[1], state_of(optimizer)["precision"]),
        )
        assert moved == (step < 4, step < 4)
        expected = (20.0 / (1 - step / 4), 1.0 / (1 - step / 4)) if step < 4 else (math.inf, math.inf)
        assert (optimizer.statistics["kappa_precision"], optimizer.statistics["kappa_mean"]) == pytest.approx(expected)


def test_statistics_are_extremes_and_means_of_the_state() -> None:
    model = Weights()
    optimizer = ProximalScore(
        model.named_parameters(), N, metric="posterior", penalty=ForwardKL(5.0, 1.0), initial_precision=0.1, paired=True
    )
    optimizer.monitor = True
    before = state_of(optimizer)["precision"].clone()
    for _ in optimizer.draws():
        model.weight.pow(4).sum().backward()
    optimizer.step()
    after, ratio = state_of(optimizer)["precision"].log(), state_of(optimizer)["precision"] / before
    expected = {
        "count": SIZE,
        "log_precision_mean": after.mean().item(),
        "log_precision_min": after.min().item(),
        "log_precision_max": after.max().item(),
        "ratio_mean": ratio.mean().item(),
        "ratio_min": ratio.min().item(),
        "ratio_max": ratio.max().item(),
        "kappa_precision": 5.0,
        "kappa_mean": 1.0,
    }
    assert optimizer.statistics == pytest.approx(expected)


def test_a_torch_scheduler_on_lr_scales_the_mean_step_as_the_penalty_schedule_does() -> None:
    """1 / lr multiplies the proximal weight of the mean: two ways to the same factor."""

    def run(schedule: Schedule, scheduled_lr: bool) -> Tensor:
        model = Weights()
        optimizer = ProximalScore(
            model.named_parameters(),
            N,
            metric="posterior",
            penalty=ForwardKL(20.0, 1.0, Schedule(), schedule),
            initial_precision=0.1,
            paired=True,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / 5 if scheduled_lr else 1.0)
        for _ in range(6):
            for _ in optimizer.draws():
                model.weight.pow(4).sum().backward()
            optimizer.step()
            scheduler.step()
        return model.weight.detach()

    by_penalty, by_lr = run(Schedule("linear", length=5), False), run(Schedule(), True)
    torch.testing.assert_close(by_lr, by_penalty)
    assert not torch.allclose(run(Schedule(), False), by_lr)


# ------------------------------------------------------------ scores that are not finite


def loop(model: Weights, optimizer: ProximalScore, bad: float | None = None, evaluation: int = 0) -> None:
    for index in optimizer.draws():
        factor = bad if bad is not None and index == evaluation else 1.0
        (factor * model.weight.pow(4).sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("settings", [{}, {"paired": False}, {"draws": 2}, {"paired": False, "draws": 2}], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("last", [False, True])
def test_a_step_with_scores_that_are_not_finite_is_skipped_and_the_next_is_fine(
    settings: dict[str, Any], bad: float, last: bool
) -> None:
    model = Weights()
    optimizer = ProximalScore(
        model.named_parameters(), N, **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings)
    )
    loop(model, optimizer)
    before = {name: tensor.clone() for name, tensor in state_of(optimizer).items()}
    loop(model, optimizer, bad, optimizer.evaluations_per_step - 1 if last else 0)
    assert torch.equal(model.weight, before["mean"])
    assert torch.equal(state_of(optimizer)["precision"], before["precision"])
    group = optimizer.param_groups[0]
    assert (group["step"], group["skipped"], group["skipped_in_a_row"]) == (2, 1, 1)
    loop(model, optimizer)
    assert not torch.equal(model.weight, before["mean"])
    assert all(tensor.isfinite().all() for tensor in state_of(optimizer).values())
    assert (group["step"], group["skipped"], group["skipped_in_a_row"]) == (3, 1, 0)


def test_a_skipped_step_leaves_no_trace_but_its_noise() -> None:
    """The steps after are those of an optimizer that only counted it, running means included."""
    model, other = Weights(), Weights()
    skipping, counting = (
        ProximalScore(m.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
        for m in (model, other)
    )
    for _ in range(2):
        loop(model, skipping)
        loop(other, counting)
    loop(model, skipping, float("nan"), 1)
    counting.param_groups[0]["step"] += 1
    for _ in range(2):
        loop(model, skipping)
        loop(other, counting)
    assert torch.equal(model.weight, other.weight)


def test_point_estimates_stay_too_when_a_step_is_skipped() -> None:
    model = nn.Linear(3, 2)
    optimizer = ProximalScore(
        model.named_parameters(), N, prior=Prior(biases="point"), metric="posterior", initial_precision=0.1, paired=True
    )
    before = model.bias.detach().clone()
    for _ in optimizer.draws():
        (model(torch.ones(1, 3)).sum() * float("nan")).backward()
    optimizer.step()
    assert torch.equal(model.bias, before)
    assert optimizer.state[model.bias]["step"] == 0


def test_too_many_skipped_steps_in_a_row_raise_and_name_a_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = ProximalScore(
        model.named_parameters(), N, max_skipped_steps=3, metric="posterior", initial_precision=0.1, paired=True
    )

    def run(bad: bool) -> None:
        for _ in optimizer.draws():
            loss = model(torch.ones(2, 3)).sum()
            (loss + (model[1].bias.sum() * float("nan") if bad else 0.0)).backward()
        optimizer.step()

    for bad in (True, True, False, True, True):  # never three in a row
        run(bad)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .*first parameter: 1\.bias") as error:
        run(True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("found", [torch.tensor(1.0), torch.tensor(True), True])
def test_a_training_loop_may_decide_that_a_step_is_skipped(found: Any) -> None:
    model = Weights()
    optimizer = ProximalScore(model.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
    before = model.weight.detach().clone()
    for _ in optimizer.draws():
        model.weight.pow(2).sum().backward()
    assert not optimizer.nonfinite
    optimizer.found_inf = found
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert optimizer.found_inf is None  # the decision holds for one step
    loop(model, optimizer)
    loop(model, optimizer)  # the first one makes the mean's metric
    assert not torch.equal(model.weight, before)
