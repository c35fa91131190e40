"""Variational families against torch.distributions: densities, scores, divergences, draws, first states, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Cauchy,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions import Distribution as TorchDistribution
from torch.distributions.transforms import TanhTransform

import proxscore.inference
from proxscore.config import FAMILIES, PENALTIES
from proxscore.inference import (
    Distribution,
    FullCovariance,
    GradientSolver,
    Kronecker,
    LowRank,
    MeanField,
    Mixture,
    NoPenalty,
    Prior,
    ProximalScore,
    Quadratic,
    ReverseKL,
)
from proxscore.inference.families import Family, State
from proxscore.inference.families.base import whole
from proxscore.inference.families.full_covariance import LARGEST
from proxscore.inference.penalties import Penalty

SHAPE = torch.Size((2, 3))
D = SHAPE.numel()
DRAWS = 10_000

GAUSSIANS: list[Family] = [MeanField(), FullCovariance(), LowRank(2, 0.7), Kronecker()]
MIXTURE = Mixture(3, 1.5, [1.0, 2.0, 3.0])
ALL: list[Family] = [*GAUSSIANS, MIXTURE]


def kinds(families: list[Family]) -> list[str]:
    return [family.kind for family in families]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first(family: Family, seed: int = 0) -> State:
    """The family's initial state about some mean, with variances that differ."""
    return family.initial(normal(D, seed=seed), normal(D, seed=seed + 1).exp(), SHAPE, lambda j: normal(D, seed=50 + j))


def moved(family: Family, seed: int = 0) -> State:
    """A state in general position: a candidate some way from the initial state."""
    anchor = first(family, seed)
    parameters = family.parameters(anchor)
    offsets = {
        name: 0.4 * normal(*value.shape, seed=seed + 7 + i) for i, (name, value) in enumerate(parameters.items())
    }
    return family.candidate(anchor, {name: value + offsets[name] for name, value in parameters.items()})


def reference(family: Family, state: State) -> TorchDistribution:
    """The same distribution, written with torch."""
    if isinstance(family, MeanField):
        return MultivariateNormal(state["mean"], precision_matrix=state["precision"].diag())
    if isinstance(family, FullCovariance):
        return MultivariateNormal(state["mean"], state["factor"] @ state["factor"].mT)
    if isinstance(family, LowRank):
        return LowRankMultivariateNormal(state["mean"], state["factor"], state["variance"])
    if isinstance(family, Kronecker):
        rows, columns = (state[side] @ state[side].mT for side in ("rows", "columns"))
        return MultivariateNormal(state["mean"], torch.kron(rows, columns))
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    components = Independent(Normal(state["means"].mT, state["precisions"].mT.rsqrt()), 1)
    return MixtureSameFamily(Categorical(weights), components)


def covariance(family: Family, state: State) -> Tensor:
    built = reference(family, state)
    if isinstance(built, (MultivariateNormal, LowRankMultivariateNormal)):
        return built.covariance_matrix
    assert isinstance(built, MixtureSameFamily)
    weights, means = built.mixture_distribution.probs, state["means"]
    offsets = means - built.mean[:, None]
    return ((1 / state["precisions"]) @ weights).diag() + (weights * offsets) @ offsets.mT


# ------------------------------------------------------------ densities


@pytest.mark.parametrize("family", ALL, ids=kinds(ALL))
def test_log_density_and_mean_are_those_of_torch(family: Family) -> None:
    state = moved(family)
    built = reference(family, state)
    torch.testing.assert_close(family.mean(state), built.mean)
    for seed in range(3):
        point = family.mean(state) + normal(D, seed=seed)
        torch.testing.assert_close(family.log_prob(state, point, whole), built.log_prob(point), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ALL, ids=kinds(ALL))
def test_the_score_is_the_gradient_of_the_log_density(family: Family) -> None:
    state = moved(family)
    built = reference(family, state)
    for seed in range(3):
        point = (family.mean(state) + normal(D, seed=seed)).requires_grad_()
        (expected,) = torch.autograd.grad(built.log_prob(point), point)
        torch.testing.assert_close(family.score(state, point.detach(), whole), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ALL, ids=kinds(ALL))
def test_score_density_and_divergence_are_differentiable_in_the_candidate(family: Family) -> None:
    """Against finite differences."""
    anchor, point = moved(family), normal(D, seed=3)
    parameters = {name: value.requires_grad_() for name, value in family.parameters(anchor).items()}

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        candidate = family.candidate(anchor, dict(zip(parameters, values, strict=True)))
        divergences = (family.kl(anchor, candidate, whole) or ()) + (family.kl(candidate, anchor, whole) or ())
        return family.score(candidate, point, whole), family.log_prob(candidate, point, whole), *divergences

    assert torch.autograd.gradcheck(outputs, tuple(parameters.values()))


@pytest.mark.parametrize("family", GAUSSIANS, ids=kinds(GAUSSIANS))
def test_the_divergence_is_that_of_torch_split_into_precision_and_mean(family: Family) -> None:
    p, q = moved(family, 0), moved(family, 20)
    built_p, built_q = (MultivariateNormal(family.mean(s), covariance(family, s)) for s in (p, q))
    parts = family.kl(p, q, whole)
    assert parts is not None
    offset = built_p.mean - built_q.mean
    torch.testing.assert_close(sum(parts), kl_divergence(built_p, built_q), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts[1], 0.5 * offset @ built_q.precision_matrix @ offset, rtol=1e-9, atol=1e-9)


def test_a_mixtures_divergence_is_that_of_component_and_weights_together() -> None:
    """Zero at itself, the components' weighted sum, and no less than the mixtures' own (10,000 draws, 5 errors)."""
    p, q = moved(MIXTURE), moved(MIXTURE, 20)
    at_itself, parts = MIXTURE.kl(p, p, whole), MIXTURE.kl(p, q, whole)
    assert at_itself == (0, 0)
    components = [
        [Independent(Normal(s["means"][:, k], s["precisions"][:, k].rsqrt()), 1) for k in range(3)] for s in (p, q)
    ]
    divergences = [kl_divergence(*pair).item() for pair in zip(*components, strict=True)]
    weights = [1 / 6, 2 / 6, 3 / 6]
    assert sum(parts).item() == pytest.approx(sum(w * d for w, d in zip(weights, divergences, strict=True)))
    only_means = MIXTURE.kl(p, {"means": q["means"], "precisions": p["precisions"]}, whole)
    assert only_means[0] == 0 < only_means[1]
    built = [
        MixtureSameFamily(
            Categorical(torch.tensor(weights).double()),
            Independent(Normal(s["means"].mT, s["precisions"].mT.rsqrt()), 1),
        )
        for s in (p, q)
    ]
    draws = built[0].sample(torch.Size([DRAWS]))
    logs = built[0].log_prob(draws) - built[1].log_prob(draws)
    assert logs.mean() - 5 * logs.std() / DRAWS**0.5 < sum(parts)
    assert sum(MIXTURE.kl(q, p, whole)) != pytest.approx(sum(parts).item())


@pytest.mark.parametrize("family", GAUSSIANS, ids=kinds(GAUSSIANS))
def test_scores_are_matched_in_the_norm_of_the_covariance(family: Family) -> None:
    state, vector = moved(family), normal(D, seed=5)
    torch.testing.assert_close(family.norm(state, vector, whole), vector @ covariance(family, state) @ vector)


def test_scores_of_a_mixture_are_matched_in_the_norm_of_the_variance_within_components() -> None:
    state, vector = moved(MIXTURE), normal(D, seed=5)
    within = sum(w / 6 * (1 / state["precisions"][:, k]) for k, w in enumerate((1.0, 2.0, 3.0)))
    torch.testing.assert_close(MIXTURE.norm(state, vector, whole), (within * vector.square()).sum())


# ------------------------------------------------------------ draws


def draws(family: Family, state: State, count: int = DRAWS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, D, generator=generator, dtype=torch.float64)
    extra = torch.randn(count, family.extra, generator=generator, dtype=torch.float64)
    return torch.stack([family.draw(state, e, x) for e, x in zip(noise, extra, strict=True)])


@pytest.mark.parametrize("family", ALL, ids=kinds(ALL))
def test_draws_have_the_mean_and_covariance_of_the_density(family: Family) -> None:
    """Each of the 6 means and 36 second moments of 10,000 draws within 5 of its standard errors."""
    state = moved(family)
    offsets = draws(family, state) - reference(family, state).mean
    products = offsets[:, :, None] * offsets[:, None, :]
    for sample, expected in ((offsets, torch.zeros(D)), (products, covariance(family, state))):
        error = sample.std(0) / DRAWS**0.5
        assert ((sample.mean(0) - expected).abs() < 5 * error).all()


def test_a_mixture_draws_its_components_as_often_as_their_weights_say() -> None:
    """Within 5 standard errors of a count; the first extra number alone decides."""
    extra = normal(DRAWS, 1, seed=2)
    counts = torch.bincount(torch.tensor([MIXTURE.component(x) for x in extra]), minlength=3)
    for count, weight in zip(counts.tolist(), (1 / 6, 2 / 6, 3 / 6), strict=True):
        assert abs(count - DRAWS * weight) < 5 * (DRAWS * weight * (1 - weight)) ** 0.5


@pytest.mark.parametrize("family", ALL, ids=kinds(ALL))
def test_the_second_draw_of_a_pair_mirrors_the_first_about_the_mean_of_its_component(family: Family) -> None:
    state = moved(family)
    assert family.antithetic
    for seed in range(5):
        noise, extra = normal(D, seed=seed), normal(family.extra, seed=seed + 10)
        centre = state["means"][:, family.component(extra)] if isinstance(family, Mixture) else state["mean"]
        plus, minus = (family.draw(state, noise, extra, sign) for sign in (1.0, -1.0))
        torch.testing.assert_close(minus, 2 * centre - plus)
        assert not torch.equal(minus, plus)


# ------------------------------------------------------------ states


@pytest.mark.parametrize("family", ALL, ids=kinds(ALL))
def test_the_candidate_of_the_anchors_parameters_is_the_anchor(family: Family) -> None:
    anchor = moved(family)
    candidate = family.candidate(anchor, family.parameters(anchor))
    assert candidate.keys() == anchor.keys()
    for name, value in anchor.items():
        torch.testing.assert_close(candidate[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ALL, ids=kinds(ALL))
def test_the_parameters_do_not_share_memory_with_the_anchor(family: Family) -> None:
    anchor = moved(family)
    before = {name: value.clone() for name, value in anchor.items()}
    for value in family.parameters(anchor).values():
        value += 1.0
    assert all(torch.equal(anchor[name], value) for name, value in before.items())


WHITENED: list[Family] = [MeanField(), FullCovariance(), Kronecker()]


@pytest.mark.parametrize("family", WHITENED, ids=kinds(WHITENED))
def test_a_candidate_relates_to_any_anchor_as_to_the_standard_normal(family: Family) -> None:
    """In the coordinates theta = m + C eps of the anchor's draws, to rounding; the mean's step is eps itself."""
    anchor, rows = moved(family), torch.eye(D, dtype=torch.float64)
    unit = family.initial(torch.zeros(D, dtype=torch.float64), rows.diagonal(), SHAPE, lambda j: normal(D, seed=j))
    parameters = {n: 0.4 * normal(*v.shape, seed=30 + i) for i, (n, v) in enumerate(family.parameters(anchor).items())}
    there, here = family.candidate(anchor, parameters), family.candidate(unit, parameters)
    root = torch.stack([family.draw(anchor, noise, noise[:0]) - family.mean(anchor) for noise in rows], 1)
    torch.testing.assert_close(family.mean(here), parameters["step"])
    torch.testing.assert_close(family.mean(there), family.mean(anchor) + root @ parameters["step"])
    torch.testing.assert_close(covariance(family, there), root @ covariance(family, here) @ root.mT)


def test_the_means_of_low_rank_and_mixture_candidates_move_in_marginal_standard_deviations() -> None:
    """A mixture's in those of the component."""
    family = LowRank(2, 0.7)
    anchor = moved(family)
    parameters = family.parameters(anchor) | {"step": normal(D, seed=30)}
    expected = family.mean(anchor) + covariance(family, anchor).diagonal().sqrt() * parameters["step"]
    torch.testing.assert_close(family.mean(family.candidate(anchor, parameters)), expected)
    anchor, steps = moved(MIXTURE), normal(D, 3, seed=30)
    candidate = MIXTURE.candidate(anchor, MIXTURE.parameters(anchor) | {"steps": steps})
    torch.testing.assert_close(candidate["means"], anchor["means"] + steps / anchor["precisions"].sqrt())


@pytest.mark.parametrize("family", [MeanField(), FullCovariance()], ids=["mean_field", "full_covariance"])
def test_the_first_state_has_exactly_the_mean_and_variances_asked_for(family: Family) -> None:
    mean, precision = normal(D, seed=0), normal(D, seed=1).exp()
    state = family.initial(mean, precision, SHAPE, lambda j: normal(D, seed=j))
    torch.testing.assert_close(family.mean(state), mean, rtol=0, atol=0)
    torch.testing.assert_close(covariance(family, state), (1 / precision).diag())
    family.mean(state).add_(1.0)  # the network's weights are not to move with it
    torch.testing.assert_close(mean, normal(D, seed=0), rtol=0, atol=0)


def test_kronecker_factors_are_first_the_geometric_means_of_rows_and_columns() -> None:
    """Exact where the precisions are a product of rows and columns; else the determinant at least is kept."""
    mean, rows, columns = normal(D, seed=0), normal(2, seed=1).exp(), normal(3, seed=2).exp()
    family, noise = Kronecker(), lambda j: normal(D, seed=j)
    precision = torch.outer(rows, columns).flatten()
    state = family.initial(mean, precision, SHAPE, noise)
    torch.testing.assert_close(covariance(family, state), (1 / precision).diag())
    uneven = normal(D, seed=3).exp()
    torch.testing.assert_close(
        covariance(family, family.initial(mean, uneven, SHAPE, noise)).logdet(), -uneven.log().sum()
    )


def test_a_convolution_counts_as_output_channels_by_everything_else() -> None:
    shape = torch.Size((4, 3, 2, 2))
    state = Kronecker().initial(torch.zeros(48), torch.ones(48), shape, lambda j: torch.zeros(48))
    assert state["rows"].shape == (4, 4)
    assert state["columns"].shape == (12, 12)


def test_the_first_low_rank_state_adds_its_spread_to_the_variances() -> None:
    """Marginal variances exceed those asked for by spread^2 on average over coordinates, within 5 standard errors."""
    size, rank, spread = 4000, 3, 0.5
    mean, precision = normal(size, seed=0), normal(size, seed=1).exp()
    family = LowRank(rank, spread)
    state = family.initial(mean, precision, torch.Size((size,)), lambda j: normal(size, seed=50 + j))
    torch.testing.assert_close(state["mean"], mean, rtol=0, atol=0)
    torch.testing.assert_close(state["variance"], 1 / precision)
    excess = state["factor"].square().sum(1) * precision
    assert abs(excess.mean().item() - spread**2) < 5 * excess.std().item() / size**0.5
    assert state["factor"].abs().min() > 0  # a zero column would have no gradient


def test_the_first_means_of_a_mixture_lie_a_spread_from_the_weights() -> None:
    """Root mean square distance over coordinates, in standard deviations, within 5 standard errors."""
    size, spread = 4000, 1.5
    mean, precision = normal(size, seed=0), normal(size, seed=1).exp()
    family = Mixture(2, spread)
    state = family.initial(mean, precision, torch.Size((size,)), lambda j: normal(size, seed=50 + j))
    squared = (state["means"] - mean[:, None]).square() * precision[:, None]
    assert ((squared.mean(0) - spread**2).abs() < 5 * squared.std(0) / size**0.5).all()
    torch.testing.assert_close(state["precisions"], torch.stack([precision] * 2, 1), rtol=0, atol=0)
    alone = Mixture(1).initial(mean, precision, torch.Size((size,)), lambda j: normal(size, seed=50 + j))
    torch.testing.assert_close(alone["means"][:, 0], mean, rtol=0, atol=0)


@pytest.mark.parametrize("family", ALL, ids=kinds(ALL))
def test_a_family_is_built_again_from_its_kind_and_settings(family: Family) -> None:
    settings = json.loads(json.dumps(family.settings()))
    again = FAMILIES.component(family.kind)(**settings)
    assert again.settings() == family.settings()
    state = moved(family)
    torch.testing.assert_close(
        again.log_prob(state, normal(D, seed=1), whole), reference(family, state).log_prob(normal(D, seed=1))
    )


# ------------------------------------------------------------ any distribution


def student(parameters: Any) -> TorchDistribution:
    return StudentT(5.0, parameters["loc"], parameters["log_scale"].exp())


STUDENT = Distribution(student, {"loc": normal(D, seed=1), "log_scale": 0.3 * normal(D, seed=2)})


def test_any_distribution_has_the_density_the_score_and_the_moments_of_its_torch_original() -> None:
    """2,000 draws: means and variances within 5 of their standard errors."""
    count = 2000
    state = STUDENT.initial(torch.zeros(D, dtype=torch.float64), torch.ones(D), SHAPE, lambda j: normal(D, seed=j))
    built, point = student(state), normal(D, seed=3).requires_grad_()
    density = built.log_prob(point).sum()
    (score,) = torch.autograd.grad(density, point)
    torch.testing.assert_close(STUDENT.log_prob(state, point.detach(), whole), density.detach())
    torch.testing.assert_close(STUDENT.score(state, point.detach(), whole).detach(), score)
    torch.testing.assert_close(STUDENT.mean(state), built.mean)
    sample = draws(STUDENT, state, count)
    assert not sample.requires_grad
    offsets = sample - built.mean
    assert (offsets.mean(0).abs() < 5 * offsets.std(0) / count**0.5).all()
    squared = offsets.square()
    assert ((squared.mean(0) - built.variance).abs() < 5 * squared.std(0) / count**0.5).all()


def test_scores_of_any_distribution_are_matched_as_a_mean_fields_of_its_typical_deviation() -> None:
    family, vector = Distribution(student, STUDENT.initial_parameters, scale=0.5), normal(D, seed=5)
    typical = {"mean": torch.zeros(D), "precision": torch.full((D,), 0.5**-2, dtype=torch.float64)}
    torch.testing.assert_close(family.norm({}, vector, whole), MeanField().norm(typical, vector, whole))


def test_draws_of_any_distribution_depend_on_the_seed_alone_and_leave_torchs_generator_alone() -> None:
    state = STUDENT.initial(torch.zeros(D, dtype=torch.float64), torch.ones(D), SHAPE, lambda j: normal(D, seed=j))
    noise, extra = normal(D, seed=1), normal(2, seed=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw = STUDENT.draw(state, noise, extra)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(STUDENT.draw(state, noise, extra), draw)
    assert not torch.equal(STUDENT.draw(state, noise, extra, -1.0), draw)


def test_a_distribution_that_knows_no_mean_gets_that_of_its_samples() -> None:
    """A squashed Gaussian; 1,000 samples: within 5 standard errors of the quadrature's 0.5 tanh-mean."""

    def build(parameters: Any) -> TorchDistribution:
        return TransformedDistribution(Normal(parameters["loc"], 1.0), [TanhTransform()])

    family = Distribution(build, {"loc": torch.full((D,), 0.8, dtype=torch.float64)})
    state = family.initial(torch.zeros(D, dtype=torch.float64), torch.ones(D), SHAPE, lambda j: normal(D, seed=j))
    grid = torch.linspace(-8, 10, 20_001, dtype=torch.float64)
    density = Normal(0.8, 1.0).log_prob(grid).exp()
    mean = torch.trapezoid(grid.tanh() * density, grid)
    deviation = (torch.trapezoid(grid.tanh().square() * density, grid) - mean**2).sqrt()
    assert ((family.mean(state) - mean).abs() < 5 * deviation / 1000**0.5).all()


def test_the_candidate_of_any_distribution_at_its_parameters_is_the_anchor() -> None:
    state = STUDENT.initial(torch.zeros(D, dtype=torch.float64), torch.ones(D), SHAPE, lambda j: normal(D, seed=j))
    parameters = STUDENT.parameters(state)
    assert all(torch.equal(value, state[name]) for name, value in STUDENT.candidate(state, parameters).items())
    assert all(value.data_ptr() != state[name].data_ptr() for name, value in parameters.items())


# ------------------------------------------------------------ refusals


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def optimizer(**settings: Any) -> ProximalScore:
    return ProximalScore(
        network().named_parameters(),
        10,
        **({"metric": "posterior", "initial_precision": 0.1, "paired": True} | settings),
    )


def short(parameters: Any) -> TorchDistribution:
    return Normal(parameters["loc"], 1.0)


def heavy(parameters: Any) -> TorchDistribution:
    return Cauchy(parameters["loc"], 1.0)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: LowRank(0), "low_rank: rank is 0"),
    (lambda: LowRank(2, 0.0), "low_rank: spread is 0.0"),
    (lambda: LowRank(2, -1.0), "low_rank: spread is -1.0"),
    (lambda: Mixture(0), "mixture: components is 0"),
    (lambda: Mixture(2, 0.0), "mixture: spread is 0.0"),
    (lambda: Mixture(2, weights=[1.0]), r"mixture: weights is \[1.0\]; it must be 'uniform', 'stacked' or 2"),
    (lambda: Mixture(2, weights=[1.0, 0.0]), "mixture: weights is"),
    (lambda: Mixture(2, weights=[1.0, -1.0]), "mixture: weights is"),
    (lambda: Mixture(2, weights=[1.0, float("nan")]), "mixture: weights is"),
    (lambda: Distribution(short, {}, scale=0.0), "distribution: scale is 0.0"),
    (lambda: FullCovariance().check("layer.weight", torch.Size((LARGEST + 1,)), LARGEST + 1), "layer.weight"),
    (lambda: optimizer(family=Kronecker()), r"kronecker: 0.bias has shape \(4,\) and is no matrix"),
    (lambda: optimizer(families={"2.*": Kronecker()}), r"kronecker: 2.bias has shape \(2,\)"),
    (lambda: optimizer(families={"2.bias": LowRank(3)}), "low_rank: rank is 3, but 2.bias and others have 2 numbers"),
    (
        lambda: optimizer(families={"2.bias": Distribution(short, {"loc": torch.zeros(3)})}),
        r"distribution: samples have shape \(3,\); 2.bias and others are \(2,\)",
    ),
    (lambda: optimizer(families={"head.*": LowRank(1)}), r"families: the pattern 'head\.\*' matches no parameter"),
    (lambda: GradientSolver(inner_steps=1), "solver.inner_steps is 1; it must be at least 2"),
    (lambda: GradientSolver(lr=0.0), "solver.lr is 0.0"),
    (lambda: GradientSolver(lr=-1.0), "solver.lr is -1.0"),
    (lambda: GradientSolver(lr=float("nan")), "solver.lr is nan"),
    (
        lambda: optimizer(family=Distribution(short, {"loc": torch.zeros(26)}), penalty=ReverseKL()),
        "penalty reverse_kl: family distribution has no divergence",
    ),
    (lambda: optimizer(family=Distribution(heavy, {"loc": torch.zeros(26)})), "distribution: it has no finite mean"),
    (lambda: GradientSolver(optimizer=torch.optim.LBFGS), "solver.optimizer LBFGS evaluates the loss itself"),
    (lambda: optimizer(solver=GradientSolver(options={"beta": 1})), "solver.options {'beta': 1}: Adam: "),
    (lambda: optimizer(penalty=Quadratic(), max_log_precision_step=None), "max_log_precision_step is None"),
    (lambda: optimizer(penalty=NoPenalty(), metric="adaptive"), "penalty NoPenalty leaves no metric"),
    (
        lambda: optimizer(penalty=NoPenalty(), metric="posterior", max_log_precision_step=None),
        "max_log_precision_step is None",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_settings_are_refused_in_one_line_that_names_them(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_what_lies_at_the_limits_is_accepted() -> None:
    optimizer(families={"2.bias": LowRank(2)})
    optimizer(families={"2.weight": Kronecker()}, prior=Prior(biases="point"))
    optimizer(family=Mixture(1), solver=GradientSolver(inner_steps=2))
    FullCovariance().check("weight", torch.Size((LARGEST,)), LARGEST)


# ------------------------------------------------------------ registries


def concrete(base: type[Any]) -> set[type[Any]]:
    """The package's classes below ``base`` that can be built."""
    found: set[type[Any]] = set()
    for each in base.__subclasses__():
        found |= concrete(each)
        if each.__module__.startswith("proxscore.") and not getattr(each, "__abstractmethods__", None):
            found.add(each)
    return found


def test_every_family_is_registered_by_its_kind_and_exported() -> None:
    """Distribution alone cannot be named by a file: it holds code."""
    assert {FAMILIES.component(kind) for kind in FAMILIES.kinds()} == concrete(Family) - {Distribution}
    assert all(FAMILIES.component(kind).kind == kind for kind in FAMILIES.kinds())
    assert {family.__name__ for family in concrete(Family)} <= set(proxscore.inference.__all__)


def test_every_penalty_is_registered_and_exported() -> None:
    assert {PENALTIES.component(kind).builds for kind in PENALTIES.kinds()} == concrete(Penalty)
    assert {penalty.__name__ for penalty in concrete(Penalty)} <= set(proxscore.inference.__all__)
