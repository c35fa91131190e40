"""Predictive distributions: averages over fixed draws, and a module that is afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from proxscore.posterior import Posterior, predict

ROWS = 23
Batch = tuple[Tensor, Tensor]


class Classifier(nn.Module):
    """Dropout and batch normalisation, so that the mode matters; some layers are frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.frozen(self.norm(self.first(x)).tanh())))


def data() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 4, generator=generator), torch.randint(3, (ROWS,), generator=generator)


def batches() -> Iterator[Batch]:
    yield from zip(*(values.split(10) for values in data()), strict=True)


@pytest.fixture
def module() -> Classifier:
    result = Classifier()
    with torch.no_grad():
        result.norm(torch.randn(50, 6) * 2 + 1)  # running statistics other than the initial ones
    return result


def posterior_of(module: nn.Module) -> Posterior:
    mean = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    return Posterior(mean, {name: torch.full_like(value, 4.0) for name, value in mean.items() if "norm" not in name})


def snapshot(module: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[Any]]:
    state = {name: value.clone() for name, value in module.state_dict().items()}
    momenta = [layer.momentum for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)]
    return state, [layer.training for layer in module.modules()], momenta


def assert_same(first: Any, second: Any) -> None:
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert first[1:] == second[1:]


def naive(module: nn.Module, posterior: Posterior, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean of softmaxes, and mean of their entropies, one draw after the other on all rows at once."""
    module = module.eval()
    softmaxes = [
        functional_call(module, posterior.draw(index, seed), (data()[0],)).double().softmax(1) for index in range(draws)
    ]
    probabilities = torch.stack(softmaxes)
    entropies = torch.special.entr(probabilities).sum(2).mean(0)
    return probabilities.mean(0).detach(), entropies.detach()


@pytest.mark.parametrize("draws", [1, 2, 7])
def test_the_prediction_is_the_average_of_the_softmaxes_of_the_draws(module: Classifier, draws: int) -> None:
    posterior = posterior_of(module)
    result = predict(module, batches, posterior, draws=draws, seed=3)
    probabilities, entropies = naive(module, posterior, draws, seed=3)
    torch.testing.assert_close(result.mean.double(), probabilities, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.expected_entropy.double(), entropies, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.mean.sum(1), torch.ones(ROWS))
    assert torch.equal(result.targets, data()[1])


def test_predictions_are_seeded(module: Classifier) -> None:
    posterior = posterior_of(module)
    first, again, other = (predict(module, batches, posterior, draws=2, seed=seed).mean for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_zero_draws_and_a_point_estimate_predict_with_the_mean_weights(module: Classifier) -> None:
    posterior = posterior_of(module)
    expected = functional_call(module.eval(), posterior.mean, (data()[0],)).softmax(1).detach()
    with torch.no_grad():
        module.first.weight.zero_()  # the mean comes from the posterior, not from the module
    torch.testing.assert_close(predict(module, batches, posterior, draws=0).mean, expected)
    torch.testing.assert_close(predict(module, batches, Posterior(posterior.mean), draws=5).mean, expected)


def test_without_a_posterior_the_weights_are_used_as_they_are(module: Classifier) -> None:
    result = predict(module, batches).mean
    torch.testing.assert_close(result, module.eval()(data()[0]).softmax(1).detach())


def test_confident_predictions_do_not_underflow(module: Classifier) -> None:
    """Log-probabilities of minus a thousand stay finite, and the draws' average keeps the largest of them."""
    posterior = posterior_of(module)
    posterior.mean["last.bias"] = torch.tensor([1000.0, 0.0, -1000.0])
    result = predict(module, batches, posterior, draws=3)
    assert result.log_probabilities.isfinite().all()
    assert result.expected_entropy.isfinite().all()
    assert (result.log_probabilities[:, 2] < -1900).all()


def test_outputs_with_positions_are_averaged_position_by_position() -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(1, 3, 1)
    posterior = posterior_of(module)
    x, y = torch.randn(5, 1, 4, 2), torch.randint(3, (5, 4, 2))
    result = predict(module, lambda: [(x[:3], y[:3]), (x[3:], y[3:])], posterior, draws=4)
    expected = torch.stack([functional_call(module, posterior.draw(i), (x,)).softmax(1) for i in range(4)]).mean(0)
    torch.testing.assert_close(result.mean, expected.detach())
    assert result.expected_entropy.shape == (5, 4, 2)
    assert torch.equal(result.targets, y)


def test_inputs_beyond_the_targets_are_padding(module: Classifier) -> None:
    x, y = data()
    padded = [(x[:20], y[:20]), (torch.cat([x[20:], torch.zeros(17, 4)]), y[20:])]
    posterior = posterior_of(module)
    result = predict(module, lambda: padded, posterior, draws=2)
    torch.testing.assert_close(result.mean, predict(module, batches, posterior, draws=2).mean)


def test_autocast_computes_in_low_precision_with_the_weights_of_each_draw(module: Classifier) -> None:
    posterior = posterior_of(module)
    result = predict(module, batches, posterior, draws=5, autocast=torch.bfloat16)
    full = predict(module, batches, posterior, draws=5)
    assert result.log_probabilities.dtype == torch.float32
    torch.testing.assert_close(result.mean, full.mean, rtol=0, atol=0.03)
    assert not torch.equal(result.mean, full.mean)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("refresh", [True, False])
@pytest.mark.parametrize("fails", [None, "batches", "refresh"])
def test_the_module_is_afterwards_what_it_was(
    module: Classifier, training: bool, refresh: bool, fails: str | None
) -> None:
    """Weights, buffers, the mode of every layer, BatchNorm's momentum; also if a loader fails after its first batch."""
    module.train(training)
    module.frozen.eval()
    before, calls = snapshot(module), {"batches": 0, "refresh": 0}

    def loader(name: str) -> Iterator[Batch]:
        calls[name] += 1
        for batch in batches():
            yield batch
            if name == fails and calls[name] == {"batches": 1, "refresh": 2}[name]:
                raise OSError("a damaged file")

    arguments = dict(draws=3, refresh=(lambda: loader("refresh")) if refresh else None)
    if fails == "batches" or (fails == "refresh" and refresh):
        with pytest.raises(OSError, match="a damaged file"):
            predict(module, lambda: loader("batches"), posterior_of(module), **arguments)
    else:
        predict(module, lambda: loader("batches"), posterior_of(module), **arguments)
    assert_same(snapshot(module), before)


def test_refreshed_batch_normalisation_has_the_statistics_of_each_draw() -> None:
    """By hand: the mean over batches of the layer input's batch mean and (unbiased) variance under the draw."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    posterior = posterior_of(module)
    x = data()[0]
    probabilities = []
    for index in range(3):
        weights = posterior.draw(index, seed=2)
        hidden = [nn.functional.linear(part, weights["0.weight"], weights["0.bias"]) for part in x.split(10)]
        mean = torch.stack([part.mean(0) for part in hidden]).mean(0)
        variance = torch.stack([part.var(0) for part in hidden]).mean(0)
        normal = (torch.cat(hidden) - mean) / (variance + 1e-5).sqrt() * weights["1.weight"] + weights["1.bias"]
        probabilities.append(nn.functional.linear(normal, weights["2.weight"], weights["2.bias"]).softmax(1))
    result = predict(module, batches, posterior, draws=3, seed=2, refresh=batches)
    torch.testing.assert_close(result.mean, torch.stack(probabilities).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(predict(module, batches, posterior, draws=3, seed=2).mean, result.mean, atol=1e-2)
