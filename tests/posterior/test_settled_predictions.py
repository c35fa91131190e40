"""Predictions that stop when their draws have settled are within their tolerance; running moments are those of all values."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy import stats
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from proxscore.config import ConfigError
from proxscore.inference import Bernoulli, Gaussian, MultiLabel
from proxscore.inference.likelihoods import HeteroscedasticGaussian
from proxscore.posterior import Posterior, Samples, predict
from proxscore.posterior.drawn import drawn
from proxscore.posterior.running import running
from proxscore.posterior.running_moments import RunningMoments
from proxscore.posterior.settled import UntilSettled
from proxscore.posterior.stacked import StackedDraws

ROWS = 40


def network(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs))


def posterior_of(module: nn.Module, precision: float = 10.0) -> Posterior:
    mean = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    return Posterior(mean, {name: torch.full_like(value, precision) for name, value in mean.items()})


def rows(seed: int = 1) -> Tensor:
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(seed))


def test_running_moments_are_those_of_scipy() -> None:
    values = torch.randn(50, 3, dtype=torch.float64).exp() + 1e6
    found = RunningMoments(4)
    for value in values:
        found.add(value)
    array = values.numpy()
    np.testing.assert_allclose(found.mean, array.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, array.var(0), rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, stats.sem(array), rtol=1e-6)
    np.testing.assert_allclose(found.variance_of_squares, ((array - array.mean(0)) ** 2).var(0), rtol=1e-5)


@pytest.mark.parametrize("tolerance", [0.02, 0.005])
def test_probabilities_are_within_their_tolerance_of_many_draws(tolerance: float) -> None:
    """Different rows in different batches take different numbers of draws; each is near the average of 20,000 others."""
    module, x = network(), rows()
    posterior, batches = posterior_of(module), [x[:20] / 10, x[20:]]
    rule = UntilSettled(tolerance, most=4096)
    found = predict(module, batches, posterior, draws=rule)
    generator = torch.Generator().manual_seed(5)
    weights = [m + torch.randn(20_000, *m.shape, generator=generator) / 10**0.5 for m in posterior.mean.values()]
    hidden = (torch.cat(batches) @ weights[0].mT + weights[1][:, None]).tanh()
    many = (hidden @ weights[2].mT + weights[3][:, None]).softmax(2).mean(0)
    errors = found.mean - many
    assert errors.square().mean().sqrt() < tolerance
    assert errors.abs().max() < 4 * tolerance
    assert found.draws is not None
    assert len(found.draws) == ROWS
    assert len(found.draws.unique()) == 2  # each batch its own
    assert found.error is not None
    assert found.error.max() <= tolerance
    fixed = predict(module, [batches[1]], posterior, draws=int(found.draws[-1]))
    torch.testing.assert_close(fixed.mean, found.mean[20:])


@pytest.mark.parametrize("likelihood", [Bernoulli(), MultiLabel(), Gaussian(0.2)])
def test_a_tighter_tolerance_takes_more_draws_until_there_are_no_more(likelihood: Any) -> None:
    module, x = network(1), rows()
    posterior, counts = posterior_of(module), []
    for tolerance in (1.0, 0.05, 1e-9):
        found: Any = predict(
            module,
            [x],
            posterior,
            likelihood=likelihood,
            draws=UntilSettled(tolerance, 3 * tolerance, least=8, most=300),
        )
        counts.append(int(found.draws[0]))
    assert counts[0] == 8 < counts[1] < counts[2] == 300


def test_errors_of_numbers_are_those_of_repeated_predictions() -> None:
    """The standard deviation, over repetitions, of the predictive mean and sd is the error that one repetition tells."""
    likelihood = HeteroscedasticGaussian(torch.zeros(1), torch.ones(1))
    generator = torch.Generator().manual_seed(0)
    told, means, sds = [], [], []
    for _ in range(400):
        sums = running(likelihood, None, watched=True)
        for _ in range(60):
            f, g = torch.randn(2, generator=generator).tolist()
            sums.add(torch.tensor([[2 * f, 0.3 * g]]))
        found = sums.predictive()
        told.append(float(sums.error()))
        means.append(float(found.mean))
        sds.append(float(found.sd))
    scale = np.mean(sds)
    actual = max(np.std(means), np.std(sds)) / scale
    assert actual == pytest.approx(np.mean(told), rel=0.15)


def test_auto_and_what_cannot_be() -> None:
    module, x = network(), rows()
    found = predict(module, [x], posterior_of(module, 1e6), draws="auto")
    assert found.draws is not None
    assert set(found.draws.tolist()) == {16}
    with pytest.raises(ConfigError, match="draws is 'many'; it must be a number, or auto"):
        predict(module, [x], posterior_of(module), draws="many")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="tolerance is 0"):
        UntilSettled(0.0)
    with pytest.raises(ConfigError, match="draws from 1 to 256: it must be 2 at least"):
        UntilSettled(least=1)


def test_ranks_that_average_statistics_of_each_draw_must_take_equally_many() -> None:
    """One that has settled would leave the others waiting for it."""
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(ConfigError, match="must run equally many passes"):
            predict(module, [rows()], posterior_of(module), draws="auto", refresh=lambda: [rows()])
    finally:
        dist.destroy_process_group()


def test_a_set_of_samples_is_taken_in_an_order_that_is_fair_and_to_its_end() -> None:
    """Neighbours in a chain are alike: its first members are no sample of all."""
    module, x = network(), rows()
    members = [Posterior({n: m + k / 20 for n, m in posterior_of(module).mean.items()}) for k in range(64)]
    chain = Samples(members)
    order = chain.shuffled(64, 0)
    assert sorted(order) == list(range(64))
    assert max(order[:8]) > 40
    found = predict(module, [x], chain, draws=UntilSettled(1e-9, least=4, most=200))
    assert found.draws is not None
    assert set(found.draws.tolist()) == {64}
    torch.testing.assert_close(found.mean, predict(module, [x], chain, draws=64).mean)


def test_only_draws_that_are_asked_for_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = network(), rows()
    made: set[int] = set()
    put = Posterior.put

    def counted(self: Posterior, targets: Any, index: int, seed: int = 0) -> None:
        made.add(index)
        put(self, targets, index, seed)

    monkeypatch.setattr(Posterior, "put", counted)
    predict(module, [x[:20], x[20:]], posterior_of(module, 1e6), draws="auto")
    assert made == set(range(16))


# ------------------------------------------------------------------ one pass for all draws


class Counting(nn.Module):
    """A network whose answer depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.layer(x) * self.calls
        return y


class Remembering(nn.Module):
    """A network that keeps a weight outside of its parameters, where stacked weights do not reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.held = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.held[0].mT + self.layer.bias


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Counting, "changes its buffers"), (Remembering, "gives other outputs than each draw by itself")],
)
def test_a_network_for_which_one_pass_is_another_computation_is_called_draw_by_draw(
    kind: type[nn.Module], reason: str
) -> None:
    module, x = kind(), rows()
    with drawn(module, posterior_of(module), 5) as found, torch.no_grad():
        expected = torch.stack(list(found.outputs(x)))
        if kind is Counting:
            module.calls.zero_()  # type: ignore[operator, union-attr]
        together = StackedDraws(found)
        assert together.stacked
        assert torch.equal(torch.stack(list(together.outputs(x))), expected)
        assert reason in str(together.refused)


def test_recurrent_layers_are_called_draw_by_draw() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x[:, None])[0][:, -1]
            return y

    module = Recurrent()
    with drawn(module, posterior_of(module), 5) as found:
        assert not StackedDraws(found).stacked


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_stacked_prediction_is_the_prediction_draw_by_draw(
    autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxscore.posterior import stacked

    module, x = network(), rows()
    batches = [x[:7], x[7:30], x[30:]]
    one = predict(module, batches, posterior_of(module), draws=9, autocast=autocast)
    monkeypatch.setattr(stacked, "MOST_WORK", 0)
    other = predict(module, batches, posterior_of(module), draws=9, autocast=autocast)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if autocast is None else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(one.mean, other.mean, **tolerance)


def test_a_loader_may_write_each_batch_into_the_same_memory() -> None:
    module, x = network(), rows()
    y = torch.arange(len(x)) % 3
    held, classes = torch.empty(8, 4), torch.empty(8, dtype=torch.long)

    def batches() -> Any:
        for part, targets in zip(x.split(8), y.split(8), strict=True):
            yield held.copy_(part), classes.copy_(targets)

    expected = predict(module, list(zip(x.split(8), y.split(8), strict=True)), posterior_of(module), draws=3)
    found = predict(module, batches, posterior_of(module), draws=3)
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.log_density, expected.log_density)


# ------------------------------------------------------------------ memory


class Measured(nn.Module):
    """A network that notes how many bytes all tensors have while it is called."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, classes))
        self.calls = self.peak = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 23 == 0:
            held = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]  # but frozen ones
            self.peak = max(self.peak, sum({t.data_ptr(): t.untyped_storage().nbytes() for t in held}.values()))
        y: Tensor = self.net(x)
        return y


@pytest.fixture
def nothing_before() -> Iterator[None]:
    """Within the test, the collector lists no object from before: there may be a million, of libraries."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("nothing_before")
def test_memory_does_not_grow_with_draws_and_with_rows_only_by_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand classes: all outputs of 32 draws would be 32 times the answer."""
    monkeypatch.setattr("proxscore.posterior.drawn.SNAPSHOTS", 2**20)  # draws are made anew
    peaks = {}
    for draws, count in ((4, 1000), (32, 1000), (4, 4000)):
        gc.collect()
        module = Measured(1000)
        found = predict(module, (torch.randn(50, 16) for _ in range(count // 50)), posterior_of(module), draws=draws)
        peaks[draws, count] = module.peak
        answer = found.log_probabilities.nbytes / count
        del found
    assert peaks[32, 1000] < peaks[4, 1000] + 1000 * answer
    assert peaks[4, 4000] - peaks[4, 1000] < 1.3 * 3000 * answer
    assert peaks[4, 4000] < peaks[4, 1000] + 32 * 1000 * answer
