"""Diagnostics of posteriors against closed forms, and against another implementation of Pareto k-hat.

Bayesian linear regression has everything in closed form: with a target N(mu, A^-1), a posterior q = N(m, C C^T), and
B = C^T A C - I, delta = C^T A (mu - m), the score-matching loss of a draw is ||B eps - delta||^2 / (2 D) with standard
normal eps, and the ELBO is the log evidence less KL(q || target).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import scipy.stats
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.func import functional_call

from proxscore.config import ConfigError
from proxscore.inference import (
    Categorical,
    ForwardKL,
    FullCovariance,
    Gaussian,
    GradientSolver,
    Kronecker,
    LowRank,
    MeanField,
    Prior,
    ProximalScore,
    Schedule,
)
from proxscore.inference.families import Family
from proxscore.inference.layout import Layout
from proxscore.posterior import Posterior
from proxscore.posterior.diagnostics import Gaps, drift, gaps, pareto_k
from proxscore.posterior.diagnostics.pareto import fit_generalized_pareto
from proxscore.posterior.posterior import Joint

N, D, NOISE, SCALE = 60, 4, 1.5, 0.7
LIKELIHOOD = Gaussian(NOISE).double()
LIKELIHOOD.log_noise.fill_(math.log(NOISE))


# ------------------------------------------------------------ Bayesian linear regression


@functools.cache
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(D, dtype=torch.float64) + 0.3
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) @ mixing
    y = x @ torch.tensor([0.5, -1.0, 0.2, 0.0], dtype=torch.float64)
    return x, (y + NOISE * torch.randn(N, generator=generator, dtype=torch.float64))[:, None]


def model() -> nn.Linear:
    return nn.Linear(D, 1, bias=False, dtype=torch.float64)


def batches(size: int = 25) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = data()
    yield from zip(x.split(size), y.split(size), strict=True)


PRIOR_MEAN = torch.tensor([[0.1, 0.0, -0.2, 0.3]], dtype=torch.float64)
PRIOR = Prior(scale=SCALE, mean={"weight": PRIOR_MEAN})


def exact(temperature: float = 1.0, prior_precision: float = SCALE**-2) -> MultivariateNormal:
    x, y = data()
    weight = 1 / (temperature * NOISE**2)
    precision = weight * x.T @ x + prior_precision * torch.eye(D, dtype=torch.float64)
    right = weight * x.T @ y[:, 0] + prior_precision * PRIOR_MEAN[0]
    return MultivariateNormal(torch.linalg.solve(precision, right), precision_matrix=precision)


def joint(family: Family, state: dict[str, Tensor]) -> Posterior:
    mean = {"weight": family.mean(state).view(1, D)}
    return Posterior(mean, joint=[Joint(Layout(family, [("weight", mean["weight"], 0)]), state)])


def full(q: MultivariateNormal) -> Posterior:
    return joint(FullCovariance(), {"mean": q.loc, "factor": q.scale_tril})


def measure(posterior: Posterior, **settings: Any) -> Gaps:
    settings = dict(data_size=N, prior=PRIOR, draws=8) | settings
    return gaps(model(), LIKELIHOOD, batches, posterior, **settings)


def test_elbo_of_the_exact_posterior_is_the_log_evidence_without_any_error() -> None:
    x, y = data()
    covariance = NOISE**2 * torch.eye(N, dtype=torch.float64) + SCALE**2 * x @ x.T
    evidence = MultivariateNormal((x @ PRIOR_MEAN.T)[:, 0], covariance).log_prob(y[:, 0]).item()
    found = measure(full(exact()))
    assert found.elbo == pytest.approx(evidence, abs=1e-9)
    assert found.elbo_error < 1e-12
    assert found.score_loss < 1e-20
    assert found.flat == ()


def test_elbo_at_a_temperature_and_another_data_size_is_the_evidence_of_the_powered_likelihood() -> None:
    """p(y)^(1/T) of one row is a Gaussian of variance T noise^2 times (2 pi noise^2)^(-1/(2T)) (2 pi T noise^2)^(1/2)."""
    x, y = data()
    power = 0.4  # data size / (temperature x rows)
    covariance = NOISE**2 / power * torch.eye(N, dtype=torch.float64) + SCALE**2 * x @ x.T
    evidence = MultivariateNormal((x @ PRIOR_MEAN.T)[:, 0], covariance).log_prob(y[:, 0]).item()
    variance = 2 * math.pi * NOISE**2
    evidence += N * (0.5 * math.log(variance / power) - power / 2 * math.log(variance))
    found = measure(full(exact(1 / power)), temperature=5.0, data_size=2 * N)
    assert found.elbo == pytest.approx(evidence, abs=1e-9)
    assert found.score_loss < 1e-20


def test_a_flat_prior_is_left_out_of_the_elbo_and_named() -> None:
    """The evidence is then the integral of the likelihood: p(y | mode) (2 pi)^(D/2) |A|^(-1/2)."""
    x, y = data()
    target = exact(prior_precision=0.0)
    peak = Normal(x @ target.loc, NOISE).log_prob(y[:, 0]).sum()
    integral = peak + 0.5 * D * math.log(2 * math.pi) - 0.5 * torch.logdet(target.precision_matrix)
    found = measure(full(target), prior=Prior(norms="flat", biases="flat", scales={"weight": 1e200}))
    assert found.flat == ("weight",)
    assert found.elbo == pytest.approx(integral.item(), abs=1e-9)
    assert found.lines()[1].endswith("without the flat prior of weight")


def families() -> dict[str, tuple[Posterior, Tensor]]:
    """Posteriors away from the target, of several families, with their covariances."""
    generator = torch.Generator().manual_seed(1)
    mean = exact().loc + 0.1 * torch.randn(D, generator=generator, dtype=torch.float64)
    variance = torch.tensor([0.02, 0.05, 0.04, 0.08], dtype=torch.float64)
    factor = 0.1 * torch.randn(D, 2, generator=generator, dtype=torch.float64)
    square = 0.2 * torch.eye(D, dtype=torch.float64) + 0.05 * torch.randn(
        D, D, generator=generator, dtype=torch.float64
    )
    low_rank = joint(LowRank(2), {"mean": mean, "variance": variance, "factor": factor})
    rows = torch.tensor([[1.3]], dtype=torch.float64)
    return {
        "mean_field": (Posterior({"weight": mean.view(1, D)}, {"weight": 1 / variance.view(1, D)}), variance.diag()),
        "full_covariance": (joint(FullCovariance(), {"mean": mean, "factor": square}), square @ square.T),
        "low_rank": (low_rank, variance.diag() + factor @ factor.T),
        "kronecker": (joint(Kronecker(), {"mean": mean, "rows": rows, "columns": square}), 1.69 * square @ square.T),
    }


@pytest.mark.parametrize("kind", ["mean_field", "full_covariance", "low_rank", "kronecker"])
def test_gaps_of_a_perturbed_posterior_are_those_of_the_closed_form(kind: str) -> None:
    """Each draw's ratio to 1e-9 nats; averages over 500 draws to 4 standard errors, the errors themselves to 25 %."""
    posterior, covariance = families()[kind]
    target, mean = exact(), posterior.mean["weight"][0]
    q = MultivariateNormal(mean, covariance)
    found = measure(posterior, draws=500)

    draws = torch.stack([posterior.draw(index)["weight"][0] for index in range(500)])
    evidence = measure(full(target)).elbo
    ratios = evidence + target.log_prob(draws) - q.log_prob(draws)
    torch.testing.assert_close(found.log_ratios, ratios, rtol=0, atol=1e-9)
    divergence = kl_divergence(q, target).item()
    assert divergence > 10 * found.elbo_error
    assert abs(found.elbo - (evidence - divergence)) < 4 * found.elbo_error

    root = torch.linalg.cholesky(covariance)  # any root does: the norm is the same
    curvature = root.T @ target.precision_matrix @ root - torch.eye(D, dtype=torch.float64)
    offset = root.T @ target.precision_matrix @ (target.loc - mean)
    loss = (curvature.square().sum() + offset.square().sum()).item() / (2 * D)
    variance = 2 * (curvature.T @ curvature).square().sum() + 4 * (curvature @ offset).square().sum()
    error = variance.sqrt().item() / (2 * D) / math.sqrt(500)
    assert abs(found.score_loss - loss) < 4 * error
    assert found.score_loss_error == pytest.approx(error, rel=0.25)
    assert found.dimension == D


def test_mini_batch_scores_add_their_noise_power_to_the_loss_and_leave_the_elbo_unbiased() -> None:
    """Every batch of 10 rows in turn; 4 standard errors of 800 draws. The noise is that of all batches, averaged."""
    posterior, covariance = families()["mean_field"]
    whole = measure(posterior, draws=800)
    noisy = gaps(
        *(model(), LIKELIHOOD, lambda: batches(10), posterior),
        data_size=N,
        prior=PRIOR,
        draws=800,
        batches_per_draw=1,
    )
    x, y = data()
    deviation, power = covariance.diagonal().sqrt(), 0.0
    for index in range(100):
        residual = y - x @ posterior.draw(index)["weight"].T
        per_batch = N / NOISE**2 * (residual * x).view(6, 10, D).mean(1)
        power += ((per_batch - per_batch.mean(0)) * deviation).square().sum(1).mean().item() / (2 * D) / 100
    assert power > 10 * noisy.score_loss_error
    assert abs(noisy.score_loss - whole.score_loss - power) < 4 * noisy.score_loss_error
    assert abs(noisy.elbo - whole.elbo) < 4 * noisy.elbo_error
    with pytest.raises(ValueError, match="leave batches_per_draw out"):
        _ = noisy.pareto_k
    assert "pareto_k" not in noisy.metrics()
    assert "noise of mini-batch scores" in noisy.lines()[0]


# ------------------------------------------------------------ any module


class Head(nn.Module):
    """A classifier with an unused parameter, a point-estimated normalisation layer, and padding-tolerant rows."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)
        self.unused = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.body(x))))


@dataclass
class Trained:
    module: Head
    optimizer: ProximalScore
    x: Tensor
    labels: Tensor
    prior: Prior

    def measure(self, posterior: Posterior, **settings: Any) -> Gaps:
        def padded() -> Iterator[tuple[Tensor, Tensor]]:
            yield self.x[:20], self.labels[:20]
            yield torch.cat([self.x[20:], torch.full((7, 3), 9.0)]), self.labels[20:]

        settings = dict(data_size=50, prior=self.prior, temperature=0.5, draws=3) | settings
        return gaps(self.module, Categorical(), padded, posterior, **settings)


@pytest.fixture
def trained() -> Trained:
    torch.manual_seed(0)
    module, x, labels = Head(), torch.randn(30, 3), torch.randint(4, (30,))
    prior = Prior(scale=0.5, norms="point", biases="flat", mean={"head.weight": torch.ones(4, 5)})
    optimizer = ProximalScore(
        module.named_parameters(),
        50,
        prior=prior,
        temperature=0.5,
        families={"head.weight": FullCovariance()},
        metric="posterior",
        initial_precision=0.1,
        paired=True,
    )
    for _ in range(5):
        for _ in optimizer.draws():
            Categorical().nll(module(x), labels).mean().backward()
        optimizer.step()
    return Trained(module, optimizer, x, labels, prior)


def test_ratios_of_a_network_are_those_of_torchs_distributions(trained: Trained) -> None:
    """Two families, flat biases, point estimates, a prior mean, a parameter outside the forward, padded rows."""
    posterior = Posterior.of(trained.module, trained.optimizer).gather()
    found = trained.measure(posterior)
    (block,) = posterior.joint
    assert found.dimension == 15 + 5 + 20 + 4 + 4
    assert set(found.flat) == {"body.bias", "head.bias"}
    module = trained.module.eval()
    for index in range(3):
        weights = posterior.draw(index)
        logits = functional_call(module, weights, (trained.x,))
        expected = 50 / 0.5 * -nn.functional.cross_entropy(logits, trained.labels).double()
        for name in ("body.weight", "head.weight", "unused.weight"):
            expected += Normal(float(name == "head.weight"), 0.5).log_prob(weights[name].double()).sum()
        for name, precision in posterior.precision.items():
            q = Normal(posterior.mean[name].double(), precision.double().rsqrt())
            expected -= q.log_prob(weights[name].double()).sum()
        q = MultivariateNormal(block.state["mean"], block.state["factor"] @ block.state["factor"].mT)
        expected -= q.log_prob(weights["head.weight"].flatten())
        assert found.log_ratios[index].item() == pytest.approx(expected.item(), abs=1e-3)


def test_a_posterior_in_training_has_the_gaps_of_its_copy_and_its_module_is_left_as_it_was(trained: Trained) -> None:
    module = trained.module
    module.train()
    module.body.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    live = Posterior.of(module, trained.optimizer)
    found = trained.measure(live)
    assert torch.equal(found.log_ratios, trained.measure(live.gather()).log_ratios)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [layer.training for layer in (module, module.body, module.norm)] == [True, False, True]
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_posterior_in_training_whose_means_are_the_weights_has_the_gaps_of_its_copy() -> None:
    """In float64, where no conversion makes a copy of the means."""
    module = model()
    live = Posterior.of(
        module,
        ProximalScore(
            module.named_parameters(), N, prior=PRIOR, metric="posterior", initial_precision=0.1, paired=True
        ),
    )
    found, copied = (
        gaps(module, LIKELIHOOD, batches, q, data_size=N, prior=PRIOR, draws=4) for q in (live, live.gather())
    )
    assert torch.equal(found.log_ratios, copied.log_ratios)


def test_a_point_estimate_a_wrong_prior_no_rows_and_settings_out_of_range_are_refused_in_one_line(
    trained: Trained,
) -> None:
    posterior = Posterior.of(trained.module, trained.optimizer)
    cases: list[tuple[str, Posterior, dict[str, Any]]] = [
        ("point estimate: it has no distance", Posterior.of(trained.module), {}),
        (r"samples body\.bias, but the prior does not", posterior, {"prior": Prior(biases="point")}),
        ("draws is 1; it must be at least 2", posterior, {"draws": 1}),
        ("temperature is 0; it must be positive", posterior, {"temperature": 0}),
        ("batches_per_draw is -1; it must be positive", posterior, {"batches_per_draw": -1}),
    ]
    for message, q, settings in cases:
        with pytest.raises(ConfigError, match=message) as error:
            trained.measure(q, **settings)
        assert "\n" not in str(error.value)
    for settings in ({}, {"batches_per_draw": 1}):
        with pytest.raises(ConfigError, match="gave no rows"):
            gaps(trained.module, Categorical(), lambda: [], posterior, data_size=1, prior=trained.prior, **settings)
    with pytest.raises(ConfigError, match="another architecture"):
        gaps(model(), LIKELIHOOD, batches, posterior, data_size=1, prior=PRIOR)


def test_a_sharded_module_is_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh, module = init_device_mesh("cpu", (1,)), model()
        module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, [Shard(0)]))
        posterior = Posterior.of(
            module, ProximalScore(module.named_parameters(), N, metric="posterior", initial_precision=0.1, paired=True)
        )
        with pytest.raises(ConfigError, match=r"use posterior\.gather\(\) and a whole module"):
            gaps(module, LIKELIHOOD, batches, posterior, data_size=N, prior=Prior())
    finally:
        dist.destroy_process_group()


# ------------------------------------------------------------ Pareto k-hat

# arviz 0.23.4 with numpy 2.4.6: psislw(log_ratios)[1] of `ripples(count, shape)`.
ARVIZ_K = {
    (100, -0.3): -0.06845532387207966,
    (100, 0.2): 0.28209048182736735,
    (100, 0.7): 0.6318374213874126,
    (100, 1.5): 1.077704163361609,
    (500, -0.3): -0.14998718328378047,
    (500, 0.2): 0.242625094145764,
    (500, 0.7): 0.6413202142756238,
    (500, 1.5): 1.3176187901169034,
    (4000, -0.3): -0.21137634280508352,
    (4000, 0.2): 0.21971821025651259,
    (4000, 0.7): 0.681248081996167,
    (4000, 1.5): 1.4213251196396,
}
# The same release's _gpdfit of 200 quantiles with scale 2, shape k without its prior: (k, sigma).
ARVIZ_FIT = {
    -0.5: (-0.4831048250770833, 1.9665497770790104),
    0.01: (0.020917457906945013, 1.9751244231770388),
    0.5: (0.5023084638114532, 1.9902342358721523),
    1.0: (0.9934824733670253, 2.0061050187798553),
}


def quantiles(count: int, shape: float) -> Tensor:
    """Of a generalized Pareto distribution of scale 1, at (i + 1/2) / count."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return ((1 - levels) ** -shape - 1) / shape


def ripples(count: int, shape: float) -> Tensor:
    return torch.log(quantiles(count, shape) + 1) + 0.1 * torch.sin(torch.arange(count, dtype=torch.float64) * 1.7)


@pytest.mark.parametrize(("count", "shape"), list(ARVIZ_K))
def test_pareto_k_is_that_of_arviz(count: int, shape: float) -> None:
    expected = ARVIZ_K[count, shape]
    assert pareto_k(ripples(count, shape)) == pytest.approx(expected, rel=1e-8)
    assert pareto_k(ripples(count, shape).flip(0) - 1e4) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("shape", list(ARVIZ_FIT))
def test_the_generalized_pareto_fit_is_that_of_arviz(shape: float) -> None:
    assert fit_generalized_pareto(2 * quantiles(200, shape)) == pytest.approx(ARVIZ_FIT[shape], rel=1e-8)


@pytest.mark.parametrize("shape", [-0.3, 0.1, 0.5, 0.9])
def test_the_generalized_pareto_fit_recovers_known_shapes_and_scales(shape: float) -> None:
    """4 standard errors of the maximum-likelihood estimate, of 5,000 samples: (1 + k) / sqrt(n) for the shape."""
    samples = scipy.stats.genpareto.rvs(shape, scale=3.0, size=5000, random_state=0)
    found, scale = fit_generalized_pareto(torch.from_numpy(samples))
    assert abs(found - shape) < 4 * (1 + shape) / 5000**0.5
    assert abs(scale / 3 - 1) < 4 * (2 * (1 + shape) / 5000) ** 0.5


def test_pareto_k_of_exact_equal_and_vanishing_ratios() -> None:
    assert pareto_k(torch.full((100,), -3.0)) == -math.inf
    assert pareto_k(torch.arange(100.0) * 1000) == math.inf
    ties = torch.zeros(2000).index_fill(0, torch.arange(400), 1.0)  # the tail's numbers are all equal
    assert pareto_k(ties) == -math.inf
    steps = ties.index_fill(0, torch.arange(120, 400), 0.5)  # 120 equal ones, where the fit's grid meets t = 0
    assert math.isfinite(pareto_k(steps))


def test_too_few_draws_and_infinite_ratios_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="needs at least 100 draws; these are 99"):
        pareto_k(torch.zeros(99))
    with pytest.raises(ValueError, match="finite log ratios"):
        pareto_k(torch.zeros(200).index_fill(0, torch.tensor([3]), -math.inf))
    few = measure(full(exact()), draws=8)
    assert "pareto_k" not in few.metrics()
    assert few.lines()[-1] == "Pareto k-hat needs at least 100 draws; these are 8"


def test_pareto_k_tells_a_slightly_wide_posterior_from_a_far_too_narrow_one() -> None:
    """In 4 dimensions. Of a q with a fraction f < 1 of the target's variance, the tail's shape is 1 - f = 0.98; here a tail of
    190 draws gives it, with a standard error of about 0.14."""
    target = exact()
    wide = MultivariateNormal(target.loc, target.covariance_matrix * 1.2)
    narrow = MultivariateNormal(target.loc, target.covariance_matrix * 0.02)
    good, bad = (measure(full(q), draws=4000) for q in (wide, narrow))
    assert good.pareto_k < 0.5
    assert bad.pareto_k > 0.7
    assert good.metrics()["pareto_k"] == good.pareto_k
    assert "q is close" in good.lines()[-1]
    assert "q misses a part" in bad.lines()[-1]


# ------------------------------------------------------------ drift of the precisions


class TwoInputs(nn.Module):
    """Linear in two inputs of three numbers each; the second input may be switched off."""

    def __init__(self, second: float) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(3, 1, bias=False, dtype=torch.float64) for _ in range(2))
        self.switch = second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x[:, :3]) + self.second(self.switch * x[:, 3:])


ROWS = 200
ORTHOGONAL = torch.linalg.qr(
    torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
).Q * math.sqrt(ROWS)  # every column's curvature is ROWS, at unit noise


def fit(kappa: float, steps: int, *, second: float = 1.0, schedule: str = "constant", **settings: Any) -> ProximalScore:
    torch.manual_seed(0)
    module, y = TwoInputs(second), ORTHOGONAL @ torch.ones(6, 1, dtype=torch.float64)
    settings = dict(prior=Prior(scale=0.5), momentum=0.0, initial_precision=5.0) | settings
    penalty = ForwardKL(kappa, 1.0, precision_schedule=Schedule(schedule, length=max(steps, 1)))  # type: ignore[arg-type]
    optimizer = ProximalScore(
        module.named_parameters(),
        ROWS,
        penalty=penalty,
        **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings),
    )
    for _ in range(steps):
        for _ in optimizer.draws():
            Gaussian().double().nll(module(ORTHOGONAL), y).mean().backward()
        optimizer.step()
    return optimizer


def test_a_posterior_that_the_penalty_holds_has_not_drifted() -> None:
    """The precision is five times the curvature, and kappa 10,000 lets it fall by 0.4 % in 40 steps."""
    for row in drift(fit(10_000.0, 40)):
        assert row.numbers == 3
        assert row.moved == 0.0
        assert -0.005 < row.from_initial < 0
        assert row.from_prior == pytest.approx(math.log(5 * ROWS * 0.25 + 1), abs=0.01)


def test_precisions_drift_to_their_optimum_and_stay_where_it_is_their_start() -> None:
    moved = drift(fit(20.0, 100))
    assert all(row.moved == 1.0 and row.from_initial == pytest.approx(-math.log(5), abs=0.1) for row in moved)
    assert all(row.moved == 0.0 for row in drift(fit(20.0, 100, initial_precision=1.0)))


def test_a_parameter_that_the_data_say_nothing_about_drifts_to_the_prior() -> None:
    first, second = drift(fit(2.0, 300, second=0.0, schedule="cosine"))
    assert (first.at_prior, second.at_prior) == (0.0, 1.0)
    assert second.from_prior == pytest.approx(0.0, abs=0.05)
    flat = drift(fit(10.0, 20, second=0.0, prior=Prior(scales={"second*": 1e200})))
    assert [row.from_prior is None for row in flat] == [False, True]


@pytest.mark.parametrize(("schedule", "steps"), [("constant", 50), ("cosine", 450)])
def test_reach_is_what_a_precision_without_curvature_falls_by(schedule: str, steps: int) -> None:
    """Single draws of a parameter with a flat prior outside the data: the curvature statistic is zero without noise."""
    settings = dict(prior=Prior(scales={"second*": 1e200}), paired=False, max_log_precision_step=0.01)
    row = drift(fit(60.0, steps, second=0.0, schedule=schedule, **settings))[1]
    assert row.reach == pytest.approx(-row.from_initial, rel=1e-3)


@pytest.mark.parametrize("family", [MeanField(), FullCovariance(), LowRank(2), Kronecker()], ids=lambda each: each.kind)
def test_rows_of_other_families_are_of_their_marginal_precisions(family: Family) -> None:
    """Of states in general position, against the diagonals of their covariances, to rounding."""
    generator = torch.Generator().manual_seed(1)
    optimizer = fit(20.0, 0, family=family, solver=None if family.kind == "full_covariance" else GradientSolver())
    expected: list[float] = []
    for block in optimizer.blocks():
        state = block.state
        for value in state.values():
            value += 0.3 * torch.rand(value.shape, generator=generator, dtype=value.dtype)
        covariance = {
            "mean_field": lambda s: (1 / s["precision"]).diag(),
            "full_covariance": lambda s: s["factor"] @ s["factor"].T,
            "low_rank": lambda s: s["variance"].diag() + s["factor"] @ s["factor"].T,
            "kronecker": lambda s: torch.kron(s["rows"] @ s["rows"].T, s["columns"] @ s["columns"].T),
        }[family.kind](state)
        ratios = 0.5**2 / covariance.diagonal()  # to the prior's precision
        expected += [piece.log().mean().item() for piece in ratios.split(3)]
    rows = drift(optimizer)
    assert [row.from_prior for row in rows] == pytest.approx(expected, rel=1e-12)
    assert [row.reach for row in rows] == [0.0 if family.kind == "full_covariance" else None] * 2


def test_skipped_steps_count_for_nothing() -> None:
    optimizer = fit(10_000.0, 20)
    before = drift(optimizer)
    for _ in range(3):
        for _ in optimizer.draws():
            sum(math.nan * parameter.sum() for parameter in optimizer.param_groups[0]["params"]).backward()
        optimizer.step()
    assert optimizer.param_groups[0]["skipped"] == 3
    assert drift(optimizer) == before
