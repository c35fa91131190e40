"""Posteriors that are no parametric family over weights: sets of samples, SWAG's Gaussian, dropout masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.posterior import DropoutPosterior, Posterior, Samples, SWAGPosterior, predict


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))


def point(seed: int) -> Posterior:
    """A point estimate with weights and buffers of its own."""
    found = Posterior.of(network())
    torch.manual_seed(seed)
    mean = {name: torch.randn_like(value) for name, value in found.mean.items()}
    buffers = {n: torch.rand_like(b) + 1 if b.is_floating_point() else b for n, b in found.buffers.items()}
    return Posterior(mean, {}, buffers)


def swag(columns: int = 3) -> SWAGPosterior:
    base = point(0)
    torch.manual_seed(1)
    precision = {name: torch.rand_like(value) + 0.5 for name, value in base.mean.items()}
    deviations = [{name: torch.randn_like(value) for name, value in base.mean.items()} for _ in range(columns)]
    return SWAGPosterior(base.mean, precision, base.buffers, {"note": 1}, deviations=deviations)


def dropout() -> DropoutPosterior:
    base = point(0)
    return DropoutPosterior(base.mean, {}, base.buffers, {"note": 2})


def gaussian(seed: int) -> Posterior:
    base = point(seed)
    return Posterior(
        base.mean, {name: torch.full_like(value, 100.0) for name, value in base.mean.items()}, base.buffers
    )


KINDS: dict[str, Posterior] = {
    "swag": swag(),
    "dropout": dropout(),
    "points": Samples([point(0), point(1), point(2)], {"note": 3}),
    "one sample": Samples([point(0)]),
    "gaussians": Samples([gaussian(0), gaussian(1)]),
    "samples of samples": Samples([Samples([point(0), point(1)]), Samples([point(2), point(3)])]),
    "mixed": Samples([swag(), dropout()]),
}


def logits(posterior: Posterior, index: int | None, inputs: Tensor) -> Tensor:
    module = network().eval()
    with torch.no_grad(), posterior.use(module, index, seed=3):
        return module(inputs)


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_posterior_loads_to_the_same_draws(name: str, tmp_path: Path) -> None:
    posterior, inputs = KINDS[name], torch.randn(5, 3)
    loaded = Posterior.load(posterior.gather().save(tmp_path))
    assert type(loaded) is type(posterior)
    assert loaded.description == posterior.description
    assert (loaded.random, loaded.family, loaded.single) == (posterior.random, posterior.family, posterior.single)
    assert loaded.indices(4) == posterior.indices(4)
    outputs = [logits(posterior, index, inputs) for index in posterior.indices(4)]
    for index, output in zip(posterior.indices(4), outputs, strict=True):
        assert torch.equal(logits(loaded, index, inputs), output)
    differ = {tuple(output.flatten().tolist()) for output in outputs}
    assert len(differ) == len(outputs) if "dropout" not in posterior.family else len(differ) > 1  # masks are few


@pytest.mark.parametrize("name", KINDS)
def test_within_a_draw_the_module_is_that_draw_and_afterwards_it_is_what_it_was(name: str) -> None:
    posterior, module = KINDS[name], network()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with posterior.use(module, posterior.indices(4)[-1], seed=3):
        weights = posterior.draw(posterior.indices(4)[-1], seed=3)
        for key, value in module.named_parameters():
            torch.testing.assert_close(value, weights[key])
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(layer._forward_hooks for layer in module.modules())


def test_a_set_gives_at_most_its_samples_evenly_spaced_and_equally_many_of_each_member() -> None:
    assert Samples([point(k) for k in range(12)]).indices(16) == list(range(12))
    assert Samples([point(k) for k in range(12)]).indices(4) == [1, 4, 7, 10]
    ensemble = Samples([gaussian(k) for k in range(3)])
    assert [index % 3 for index in ensemble.indices(8)] == [0, 1, 2] * 2  # 6 of 8: two of each
    assert len(set(ensemble.indices(8))) == 6
    assert ensemble.indices(1) == [1]


def test_the_predictive_of_a_set_is_the_mean_of_its_members_with_their_own_buffers() -> None:
    members, inputs = [point(k) for k in range(3)], torch.randn(7, 3)
    targets = torch.zeros(7, dtype=torch.long)
    module = network()
    predictive = predict(module, lambda: [(inputs, targets)], Samples(members), draws=10)
    alone = [m.load_into(network()).eval()(inputs).softmax(1) for m in members]
    torch.testing.assert_close(predictive.mean, torch.stack(alone).mean(0))
    single = predict(module, lambda: [(inputs, targets)], Samples(members), draws=0)
    torch.testing.assert_close(single.mean, alone[-1])


def test_swag_has_half_the_diagonal_and_half_the_low_rank_covariance() -> None:
    posterior = swag()
    name = "4.bias"
    draws = torch.stack([posterior.draw(index)[name] for index in range(6000)])
    columns = torch.stack([deviation[name] for deviation in posterior.deviations], 1)
    expected = (1 / posterior.precision[name]).diag() + columns @ columns.T / (2 * (columns.shape[1] - 1))
    torch.testing.assert_close(draws.T.cov(), expected, rtol=0.1, atol=0.05)
    torch.testing.assert_close(draws.mean(0), posterior.mean[name], rtol=0, atol=0.1)


def test_a_dropout_draw_is_one_mask_for_all_rows_however_they_are_batched() -> None:
    posterior, inputs = dropout(), torch.randn(6, 3)
    targets = torch.zeros(6, dtype=torch.long)
    whole = predict(network(), lambda: [(inputs, targets)], posterior, draws=5)
    halves = predict(network(), lambda: [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])], posterior, draws=5)
    torch.testing.assert_close(whole.log_probabilities, halves.log_probabilities)
    plain = predict(posterior.load_into(network()), lambda: [(inputs, targets)], posterior, draws=0)
    torch.testing.assert_close(plain.mean, posterior.load_into(network()).eval()(inputs).softmax(1))


def test_dropout_masks_that_reach_no_layer_are_an_error() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.linear = nn.Dropout(0.5), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    module = Around()
    posterior = DropoutPosterior(Posterior.of(module).mean)
    targets = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ConfigError, match="mc_dropout: the network calls none of its dropout layers"):
        predict(module, lambda: [(torch.randn(4, 3), targets)], posterior, draws=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "swagger"}, "kind is 'swagger'; it must be one of gaussian"),
        ({"members": None}, "a set of samples needs its members"),
        ({"members": [{"format": 2}]}, "not a posterior of format 1"),
    ],
)
def test_a_damaged_description_is_refused_in_one_line(change: dict, message: str, tmp_path: Path) -> None:
    KINDS["points"].save(tmp_path)
    file = tmp_path / "posterior.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        Posterior.load(tmp_path)
