"""A prediction reads its data once; what networks take and return; likelihoods of one output; buffers that grow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from proxscore.config import ConfigError
from proxscore.inference import Bernoulli, Categorical, Gaussian, ProximalScore
from proxscore.posterior import CategoricalPredictive, GaussianPredictive, Posterior, Samples, drawn, predict
from proxscore.posterior.diagnostics import gaps
from proxscore.posterior.stacking import stack

ROWS = 48


def network(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs))


def data(outputs: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 4, generator=generator), torch.randint(outputs, (ROWS,), generator=generator)


def posterior_of(module: nn.Module, precision: float = 25.0) -> Posterior:
    mean = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return Posterior(mean, {name: torch.full_like(value, precision) for name, value in mean.items()}, buffers)


def by_definition(module: nn.Module, posterior: Posterior, x: Tensor, draws: int) -> Tensor:
    """(S, N, ...) outputs, draw by draw on all rows at once."""
    module = module.eval()
    each = [torch.func.functional_call(module, posterior.draw(index), (x,)) for index in range(draws)]
    return torch.stack(each).detach()


@pytest.mark.parametrize("source", ["shuffled", "one_shot", "loader", "function"])
@pytest.mark.parametrize("snapshots", [2**30, 0])
def test_any_source_of_batches_gives_the_average_over_draws_of_each_row(
    source: str, snapshots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the draws' weights are too large to be kept and are made anew for every batch."""
    monkeypatch.setattr(drawn, "SNAPSHOTS", snapshots)
    module, (x, y) = network(), data()
    posterior = posterior_of(module)
    rows = TensorDataset(torch.cat([x, torch.arange(ROWS)[:, None]], 1), y)

    class Net(nn.Module):  # the row's number goes by the network, into the targets' place
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs[:, :4])

    named = Posterior(
        {f"net.{n}": v for n, v in posterior.mean.items()}, {f"net.{n}": v for n, v in posterior.precision.items()}
    )
    loader = DataLoader(rows, batch_size=7, shuffle=source == "shuffled", generator=torch.Generator().manual_seed(3))
    numbered = [(inputs, inputs[:, 4].long()) for inputs, _ in loader]
    batches: Any = {"one_shot": iter(numbered), "function": lambda: iter(numbered)}.get(source, numbered)
    result = predict(Net(), batches, named, draws=16)
    expected = torch.stack(
        [
            torch.func.functional_call(Net().eval(), named.draw(index), (rows.tensors[0],)).softmax(1).detach()
            for index in range(16)
        ]
    ).mean(0)
    torch.testing.assert_close(result.mean, expected[result.targets], rtol=1e-4, atol=1e-6)
    assert sorted(result.targets.tolist()) == list(range(ROWS))


def test_a_loader_that_shuffles_gives_the_accuracy_of_one_that_does_not() -> None:
    module, (x, _) = network(), data()
    posterior = posterior_of(module, 1e6)
    y = by_definition(module, posterior, x, 1)[0].argmax(1)
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    result = predict(module, loader, posterior)
    assert (result.mean.argmax(1) == result.targets).float().mean() == 1.0
    torch.testing.assert_close(result.mean.sum(1), torch.ones(ROWS))


def test_no_rows_are_refused() -> None:
    module, rows = network(), iter([data()])
    predict(module, rows, posterior_of(module))
    with pytest.raises(ConfigError, match="batches gave no rows: an iterator that was read before"):
        predict(module, rows, posterior_of(module))
    with pytest.raises(ConfigError, match="refresh gave no batches for the statistics of BatchNorm under a draw"):
        predict(module, [data()], posterior_of(module), refresh=iter([data()]))


def test_samples_put_their_own_buffers_into_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (x, y) = network(), data()
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        other = network()
        other.train()(3 * torch.randn(20, 4) + seed)
        members.append(Posterior.of(other))
    expected = []
    for member in members:
        member.load_into(module)
        expected.append(module.eval()(x).softmax(1).detach())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for snapshots in (2**30, 0):
        monkeypatch.setattr(drawn, "SNAPSHOTS", snapshots)
        result = predict(module, [(x[:20], y[:20]), (x[20:], y[20:])], Samples(members), draws=3)
        torch.testing.assert_close(result.mean, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


def test_the_posterior_of_a_module_in_training_predicts_from_its_mean() -> None:
    """Its mean is what is in the weights, which each draw replaces."""
    module, (x, y) = network(), data()
    optimizer = ProximalScore(module.named_parameters(), ROWS, metric="posterior", initial_precision=0.1, paired=True)
    for _ in optimizer.draws():
        Categorical().nll(module(x), y).mean().backward()
    optimizer.step()
    result = predict(module, [(x[:9], y[:9]), (x[9:], y[9:])], Posterior.of(module, optimizer), draws=4)
    apart = Posterior.of(module, optimizer).gather()
    expected = by_definition(module, apart, x, 4).softmax(2).mean(0)
    torch.testing.assert_close(result.mean, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ what networks take and return


class Wrapped(nn.Module):
    def __init__(self, takes: str, returns: str) -> None:
        super().__init__()
        self.net, self.takes, self.returns = network(), takes, returns

    def forward(self, *values: Tensor, **named: Tensor) -> Any:
        logits = self.net(named["left"] + named["right"] if self.takes == "dict" else sum(values))
        return {
            "tensor": logits,
            "dict": {"logits": logits, "hidden": logits},
            "object": SimpleNamespace(logits=logits),
            "tuple": (logits, logits),
            "other_dict": {"scores": logits},
        }[self.returns]


@pytest.mark.parametrize("takes", ["tuple", "list", "dict"])
@pytest.mark.parametrize("returns", ["tensor", "dict", "object"])
def test_networks_that_take_and_return_tuples_and_dictionaries(takes: str, returns: str) -> None:
    module, (x, y) = Wrapped(takes, returns), data()
    half = x / 2
    inputs: Any = {"tuple": (half, half), "list": [half, half], "dict": {"left": half, "right": half}}[takes]
    posterior = posterior_of(module)
    result = predict(module, [(inputs, y)], posterior, draws=3, refresh=[(inputs, y)])
    plain = {"mean": posterior.mean, "precision": posterior.precision}
    found = Posterior(**{k: {n.removeprefix("net."): v for n, v in g.items()} for k, g in plain.items()})
    assert result.mean.shape == (ROWS, 3)
    assert found.mean.keys() == dict(network().named_parameters()).keys()
    unrefreshed = predict(module, [(inputs, y)], posterior, draws=3).mean
    each = torch.stack(
        [torch.func.functional_call(module.net.eval(), {k.removeprefix("net."): v for k, v in posterior.draw(i).items()}, (x,))
         for i in range(3)]
    )  # fmt: skip
    torch.testing.assert_close(unrefreshed, each.softmax(2).mean(0).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("returns", "kind"), [("tuple", "tuple"), ("other_dict", "dict")])
def test_other_answers_are_refused_in_one_line(returns: str, kind: str) -> None:
    module, (x, y) = Wrapped("tuple", returns), data()
    with pytest.raises(ConfigError, match=f"the network returns a {kind}; wrap it in a module"):
        predict(module, [((x, x), y)])
    with pytest.raises(ConfigError, match="a batch must be a pair"):
        predict(network(), [{"x": x, "y": y}])  # type: ignore[list-item]


class Growing(nn.Module):
    """Counts its calls in a buffer that grows, and registers another when it is first called."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, torch.ones(1)])
        self.register_buffer("late", torch.zeros(2))
        return self.net(x)


def test_buffers_that_grow_are_as_before_afterwards() -> None:
    module, (x, y) = Growing(), data()
    held = module.seen
    predict(module, [(x[:9], y[:9]), (x[9:], y[9:])], posterior_of(module), draws=3, refresh=[(x, y)])
    assert module.seen is held
    assert module.seen.tolist() == [0.0]
    assert "late" not in dict(module.named_buffers())


# ------------------------------------------------------------------ likelihoods


def test_one_output_without_a_likelihood_of_it_is_refused() -> None:
    module, (x, y) = network(1), data(2)
    with pytest.raises(
        ConfigError, match=r"one output per row is no distribution over classes; pass likelihood=Bernoulli\(\)"
    ):
        predict(module, [(x, y)], posterior_of(module))
    with pytest.raises(ConfigError, match="likelihood Linear has no predictive distribution here"):
        predict(module, [(x, y)], likelihood=nn.Linear(1, 1))  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="a Bernoulli likelihood needs one logit per row"):
        predict(network(2), [(x, y)], likelihood=Bernoulli())


@pytest.mark.parametrize("column", [True, False])
def test_one_logit_is_a_bernoulli(column: bool) -> None:
    module, (x, y) = network(1), data(2)
    posterior = posterior_of(module)
    result = predict(module, [(x, y[:, None] if column else y)], posterior, likelihood=Bernoulli(), draws=5)
    assert isinstance(result, CategoricalPredictive)
    p = by_definition(module, posterior, x, 5)[..., 0].double().sigmoid()
    torch.testing.assert_close(result.mean[:, 1].double(), p.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.mean.sum(1), torch.ones(ROWS))
    entropy = torch.special.entr(torch.stack([p, 1 - p])).sum(0).mean(0)
    torch.testing.assert_close(result.expected_entropy.double(), entropy, rtol=1e-4, atol=1e-6)
    expected = torch.distributions.Bernoulli(p.mean(0)).log_prob(y.double())
    torch.testing.assert_close(result.log_density.double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_gaussian_output_has_the_mixture_over_draws(outputs: int) -> None:
    module, (x, _) = network(outputs), data()
    y = torch.randn(ROWS, outputs)
    posterior = posterior_of(module)
    result = predict(module, [(x[:30], y[:30]), (x[30:], y[30:])], posterior, likelihood=Gaussian(0.3), draws=6)
    assert isinstance(result, GaussianPredictive)
    each = by_definition(module, posterior, x, 6).double()
    components = torch.distributions.Independent(torch.distributions.Normal(each.transpose(0, 1), 0.3), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(ROWS, 6)), components)
    torch.testing.assert_close(result.log_density.double(), mixture.log_prob(y.double()), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result.mean.double(), mixture.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.sd.square().double(), mixture.variance, rtol=1e-4, atol=1e-5)
    assert result.aleatoric.shape == y.shape
    assert result.aleatoric[0, 0].item() == pytest.approx(0.09)


def test_double_precision_is_kept() -> None:
    module = nn.Linear(4, 1).double()
    with torch.no_grad():
        module.bias.fill_(1e8)
    x = data()[0].double()
    y = module(x).detach() + 0.1
    result = predict(module, [(x, y)], Posterior.of(module), likelihood=Gaussian(0.1))
    expected = torch.distributions.Normal(y - 0.1, 0.1).log_prob(y).squeeze(1)
    torch.testing.assert_close(result.log_density, expected, rtol=1e-5, atol=1e-5)


def test_targets_that_are_no_bernoullis_are_refused() -> None:
    with pytest.raises(ValueError, match="targets of a Bernoulli likelihood must be 0 or 1"):
        Bernoulli().nll(torch.zeros(2), torch.tensor([-1, 1]))


def test_the_bernoullis_nll_is_that_of_torch_and_bad_shapes_are_refused() -> None:
    logits, y = torch.randn(9, 1), torch.randint(2, (9,))
    expected = -torch.distributions.Bernoulli(logits=logits[:, 0]).log_prob(y.float())
    torch.testing.assert_close(Bernoulli().nll(logits, y), expected)
    torch.testing.assert_close(Bernoulli().nll(logits[:, 0], y[:, None]), expected)
    with pytest.raises(ValueError, match=r"logits of shape \(9, 2\)"):
        Bernoulli().nll(torch.zeros(9, 2), y)
    with pytest.raises(ValueError, match=r"targets of shape \(9, 9\)"):
        Bernoulli().nll(logits, torch.zeros(9, 9))
    assert math.isfinite(Bernoulli().nll(torch.tensor([1e4]), torch.tensor([0])).item())


# ------------------------------------------------------------------ what reads the data several times


def test_stacking_refuses_rows_in_another_order() -> None:
    from proxscore.inference import Mixture

    module, (x, y) = nn.Sequential(nn.Linear(4, 3)), data()
    optimizer = ProximalScore(
        module.named_parameters(),
        ROWS,
        family=Mixture(2, weights="stacked"),
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(0))
    posterior = Posterior.of(module, optimizer)
    with pytest.raises(ConfigError, match="the same rows in the same order for every component"):
        stack(posterior, lambda part: predict(module, loader, part))


def test_gaps_refuse_passes_over_different_numbers_of_rows() -> None:
    module, (x, y) = network(), data()
    optimizer = ProximalScore(module.named_parameters(), ROWS, metric="posterior", initial_precision=0.1, paired=True)
    posterior, count = Posterior.of(module, optimizer), iter([40, 30, 20])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        rows = next(count)
        yield x[:rows], y[:rows]

    with pytest.raises(ConfigError, match="batches gave 40 rows for one draw and 30 for the next"):
        gaps(module, Categorical(), batches, posterior, data_size=ROWS, prior=optimizer.prior, draws=3)
