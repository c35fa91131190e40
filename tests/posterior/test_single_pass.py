"""The linearised last layer: exact where a model is linear, and near many draws of the last layer elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import BayesianRidge
from torch import Tensor, nn

from proxscore.config import ConfigError
from proxscore.inference import Bernoulli, FullCovariance, Gaussian, Kronecker, LowRank, Mixture, MultiLabel
from proxscore.inference.layout import Layout
from proxscore.inference.likelihoods import HeteroscedasticGaussian
from proxscore.posterior import Posterior, Samples, SWAGPosterior, predict
from proxscore.posterior.drawn import drawn
from proxscore.posterior.head_covariance import HeadCovariance
from proxscore.posterior.joint import Joint
from proxscore.posterior.last_layer import HeadDraws, head_posterior
from proxscore.posterior.single_pass import difference, predict_in_one_pass

GENERATOR = torch.Generator().manual_seed(0)


def network(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


def positive(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR) + 0.5


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def posterior_of(module: nn.Module, family: str) -> Posterior:
    """Last layers whose numbers depend on each other in every way that there is."""
    mean = {name: p.detach().clone() for name, p in module.named_parameters()}
    names = ["2.weight", "2.bias"]
    size = sum(mean[name].numel() for name in names)
    vector = torch.cat([mean[name].flatten() for name in names])
    first = {"0.weight": positive(5, 4) * 100}
    if family == "mean_field":
        return Posterior(mean, first | {name: positive(*mean[name].shape) * 3 for name in names})
    if family == "swag":
        deviations = [{name: normal(*mean[name].shape) / 3 for name in names} for _ in range(4)]
        return SWAGPosterior(mean, {name: positive(*mean[name].shape) * 9 for name in names}, deviations=deviations)
    if family == "kronecker":
        layout = Layout(Kronecker(), [("2.weight", mean["2.weight"], 0)])
        rows, columns = len(mean["2.weight"]), mean["2.weight"].shape[1]
        state = {
            "mean": mean["2.weight"].flatten(),
            "rows": normal(rows, rows) / 2,
            "columns": normal(columns, columns) / 2,
        }
        return Posterior(mean, {"2.bias": positive(rows) * 3}, joint=[Joint(layout, state)])
    state = {
        "full_covariance": {"mean": vector, "factor": normal(size, size) / 3},
        "low_rank": {"mean": vector, "variance": positive(size) / 4, "factor": normal(size, 3) / 4},
        "mixture": {"means": vector[:, None] + normal(size, 2) / 9, "precisions": positive(size, 2) * 5},
    }[family]
    made: Any = {"full_covariance": FullCovariance, "low_rank": lambda: LowRank(3), "mixture": Mixture}[family]()
    joint = Joint(Layout(made, [(name, mean[name], 0) for name in names]), state)
    if family == "mixture":
        joint.layout.put(made.mean(state), (mean[name] for name in names))
    return Posterior(mean, first, joint=[joint])


FAMILIES = ["mean_field", "full_covariance", "low_rank", "kronecker", "mixture", "swag"]


@pytest.mark.parametrize("family", FAMILIES)
def test_variances_of_outputs_are_those_of_the_weights_covariance_written_out(family: str) -> None:
    posterior, phi = posterior_of(network(), family), normal(7, 5)
    sigma = posterior.covariance(["2.weight", "2.bias"]).double()
    found = HeadCovariance(posterior, "2.weight", "2.bias", phi)
    jacobian = torch.stack(
        [torch.cat([torch.kron(torch.eye(3), row[None]), torch.eye(3)], 1) for row in phi]
    ).double()  # (7, 3, 18)
    expected = jacobian @ sigma @ jacobian.mT
    torch.testing.assert_close(found.covariance(phi).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.variance(phi).double(), expected.diagonal(dim1=1, dim2=2), rtol=1e-4, atol=1e-5)


def test_a_linear_regression_has_the_predictive_of_scikit_learn() -> None:
    x = normal(60, 3).double()
    y = x @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.3 * normal(60).double()
    ridge = BayesianRidge(fit_intercept=False).fit(x.numpy(), y.numpy())
    module = nn.Linear(3, 1, bias=False).double()
    mean = torch.from_numpy(ridge.coef_)
    factor = torch.linalg.cholesky(torch.from_numpy(ridge.sigma_))
    weight = {"weight": mean[None]}
    joint = Joint(Layout(FullCovariance(), [("weight", weight["weight"], 0)]), {"mean": mean, "factor": factor})
    at = normal(20, 3).double()
    likelihood = Gaussian(ridge.alpha_**-0.5)
    target = at.sum(1, keepdim=True)
    found = predict_in_one_pass(module, [(at, target)], Posterior(weight, joint=[joint]), likelihood=likelihood)
    expected, sd = ridge.predict(at.numpy(), return_std=True)
    np.testing.assert_allclose(found.mean[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.sd[:, 0], sd, rtol=1e-5)
    np.testing.assert_allclose(found.log_density, stats.norm(expected, sd).logpdf(target[:, 0]), rtol=1e-5)


@pytest.mark.parametrize("family", ["full_covariance", "kronecker"])
def test_several_outputs_have_the_density_of_their_joint_gaussian(family: str) -> None:
    module, x = network(), normal(6, 4)
    posterior = posterior_of(module, family)
    y = normal(6, 3)
    found = predict_in_one_pass(module, [(x, y)], posterior, likelihood=Gaussian(0.5))
    phi = module[:2](x).detach()
    covariance = HeadCovariance(posterior, "2.weight", "2.bias", phi).covariance(phi) + 0.25 * torch.eye(3)
    for row in range(6):
        expected = stats.multivariate_normal(module(x)[row].detach().numpy(), covariance[row].numpy()).logpdf(y[row])
        assert found.log_density[row].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_of_the_last_layer_are_those_of_the_posterior(family: str) -> None:
    module, x = network(), normal(6, 4)
    posterior = posterior_of(module, family)
    head = head_posterior(posterior, "2.weight", "2.bias")
    for index in (0, 3):
        whole, part = posterior.draw(index, 7), head.draw(index, 7)
        assert all(torch.equal(part[name], whole[name]) for name in ("2.weight", "2.bias"))
    with drawn(module, posterior, 0) as found:
        given = [outputs for _, outputs in HeadDraws(found, posterior, 4, 7).passes([x], range(4))]
    phi = module[:2](x)
    draw = posterior.draw(3, 7)
    torch.testing.assert_close(given[3], phi @ draw["2.weight"].mT + draw["2.bias"])


@pytest.mark.parametrize("family", ["mean_field", "full_covariance", "low_rank", "kronecker"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_closed_forms_are_near_draws_of_the_last_layer(family: str, outputs: int) -> None:
    """MacKay's approximation is off by a few hundredths where logits vary by about one; mean weights alone by more."""
    module, x = network(outputs), normal(40, 4)
    posterior = posterior_of(module, family)
    options: Any = {"likelihood": Bernoulli()} if outputs == 1 else {}
    closed = predict_in_one_pass(module, [x[:9], x[9:]], posterior, **options)
    many = predict_in_one_pass(module, [x[:9], x[9:]], posterior, head_draws=4000, **options)
    mean = predict(module, [x], posterior, draws=0, **options)
    found = difference(closed, many)
    assert found.mean < 0.06
    assert found.mean < difference(mean, many).mean
    assert "total variation" in str(found)
    assert closed.expected_entropy.isnan().all()


@pytest.mark.parametrize("likelihood", [MultiLabel(), HeteroscedasticGaussian(torch.zeros(2), torch.ones(2))])
def test_likelihoods_without_a_closed_form_take_draws_of_the_last_layer(likelihood: Any) -> None:
    """Where the layers before are certain they are the draws of all weights, number by number."""
    module, x = network(4), normal(30, 4)
    posterior = posterior_of(module, "full_covariance")
    posterior.precision.clear()
    y = torch.ones(30, 4 if isinstance(likelihood, MultiLabel) else 2)
    with pytest.raises(ConfigError, match=r"has no closed form: take draws of the last layer \(head_draws=32\)"):
        predict_in_one_pass(module, [(x, y)], posterior, likelihood=likelihood)
    found = predict_in_one_pass(module, [(x, y)], posterior, likelihood=likelihood, head_draws=6)
    other: Any = predict(module, [(x, y)], posterior, likelihood=likelihood, draws=6)
    torch.testing.assert_close(found.mean, other.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.log_density, other.log_density, rtol=1e-4, atol=1e-4)
    assert difference(found, other).largest < 1e-3
    auto = predict_in_one_pass(module, [(x, y)], posterior, likelihood=likelihood, head_draws="auto")
    assert auto.draws.min() >= 16


def test_networks_without_a_linear_last_layer_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = 2 * self.layer(x)
            return y

    class Normalised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, nn.functional.normalize(self.weight))

    in_place = nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.1, inplace=True))
    for module in (Scaled(), nn.Sequential(nn.Linear(4, 3), nn.Tanh()), in_place, Normalised(4, 3, bias=False)):
        mean = {name: p.detach().clone() for name, p in module.named_parameters()}
        posterior = Posterior(mean, {name: torch.ones_like(m) for name, m in mean.items()})
        for head_draws in (0, 4):
            with pytest.raises(ConfigError, match="the single pass needs a network whose outputs"):
                predict_in_one_pass(module, [normal(3, 4)], posterior, head_draws=head_draws)
    module = network()
    members = Samples([posterior_of(module, "mean_field")] * 2)
    with pytest.raises(ConfigError, match="a posterior of kind samples has no covariance of a last layer alone"):
        predict_in_one_pass(module, [normal(3, 4)], members)


def test_a_thousand_classes_of_many_features_take_no_more_than_the_family() -> None:
    """768,000 numbers: their covariance would have 590,000,000,000."""
    module = nn.Linear(768, 1000)
    mean = {name: p.detach().clone() for name, p in module.named_parameters()}
    state = {"mean": mean["weight"].flatten(), "rows": torch.eye(1000) / 99, "columns": torch.eye(768)}
    kronecker = Joint(Layout(Kronecker(), [("weight", mean["weight"], 0)]), state)
    one = Posterior(mean, {"bias": torch.ones(1000)}, joint=[kronecker])
    two = Posterior(mean, {"bias": torch.ones(1000), "weight": torch.full((1000, 768), 99.0**2)})
    x = normal(64, 768)
    torch.testing.assert_close(
        predict_in_one_pass(module, [x], one).log_probabilities,
        predict_in_one_pass(module, [x], two).log_probabilities,
        rtol=1e-4,
        atol=1e-4,
    )
