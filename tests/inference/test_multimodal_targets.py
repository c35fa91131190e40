"""Targets that no single Gaussian describes: two modes, a banana, heavy tails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, StudentT, Transform, TransformedDistribution, constraints

from proxscore.inference import ForwardKL, Prior, ProximalScore, Schedule
from proxscore.inference.families import Distribution, Family, FullCovariance, MeanField, Mixture, State
from proxscore.inference.families.base import whole
from proxscore.inference.parts.block import Block
from proxscore.inference.solver import GradientSolver
from proxscore.methods.references import advi

Density = Callable[[Tensor], Tensor]
STEPS = 1000

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


class Free(nn.Module):
    """theta (D,) itself."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, size, dtype=torch.float64))


def fit(
    log_density: Density,
    size: int,
    family: Family,
    steps: int = STEPS,
    weights: tuple[float, float] = (0.1, 0.1),
    lr: float = 0.1,
    **settings: Any,
) -> Block:
    """By the gradient solver, with a flat prior (precision 1e-12) and cosine schedules, from theta = 0."""
    model, cosine = Free(size), Schedule("cosine", length=steps)
    optimizer = ProximalScore(
        model.named_parameters(),
        1,
        prior=Prior(scale=1e6),
        metric="posterior",
        family=family,
        penalty=ForwardKL(*weights, cosine, cosine),
        solver=GradientSolver(inner_steps=5, lr=lr),
        **({"initial_precision": 0.1, "paired": True} | settings),
    )
    for _ in range(steps):
        for _ in optimizer.draws():
            (-log_density(model.theta[0])).backward()
        optimizer.step()
    (block,) = optimizer.blocks()
    return block


def modes(size: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (2, D) of two Gaussians, 16 standard deviations apart."""
    mean = torch.zeros(size, dtype=torch.float64)
    mean[:2] = torch.tensor([4.0, 1.0])
    deviation = torch.full((2, size), 0.5, dtype=torch.float64)
    deviation[0, 1] = 1.0
    return torch.stack([mean, -mean]), deviation


def two_modes(theta: Tensor, size: int) -> Tensor:
    """log (N(theta; m_1) + N(theta; m_2)) / 2, for theta (D,) or (S, D)."""
    means, deviations = modes(size)
    return Normal(means, deviations).log_prob(theta.unsqueeze(-2)).sum(-1).logsumexp(-1) - math.log(2)


class Apart(Mixture):
    """Two components that start on either side, halfway to the modes: where both start at random, one run in some ends
    with both at the same mode."""

    def initial(self, mean: Tensor, precision: Tensor, shape: torch.Size, noise: Callable[[int], Tensor]) -> State:
        return super().initial(mean, precision, shape, noise) | {"means": modes(len(mean))[0].T / 2}


@pytest.mark.parametrize("size", [2, 10])
def test_a_mixture_covers_both_modes_where_the_elbo_collapses_to_one(size: int) -> None:
    """Each component of the mixture within 0.01 standard deviations of a mode of its own and with its standard
    deviations to 10 %; over seeds: up to 0.001, and 1 to 5 % too wide in 10 dimensions. ADVI (mean-field) from a start
    as wide, 2 in each coordinate: its mean within 0.15 of one mode (up to 0.06 over seeds), so that its density at the other
    is below exp(-50)."""
    means, deviations = modes(size)
    block = fit(lambda theta: two_modes(theta, size), size, Apart(2), initial_precision=0.25)
    order = block.state["means"][0].argsort(descending=True)
    assert ((block.state["means"][:, order].T - means) / deviations).abs().max() < 0.01
    assert (block.state["precisions"][:, order].rsqrt().T / deviations).log().abs().max() < math.log(1.1)

    def score(thetas: Tensor, generator: torch.Generator) -> Tensor:
        thetas = thetas.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(two_modes(thetas, size).sum(), thetas)[0]

    start = torch.zeros(size, dtype=torch.float64), 4 * torch.eye(size, dtype=torch.float64)
    generator, cosine = torch.Generator().manual_seed(0), Schedule("cosine", length=1500)
    settings: dict[str, Any] = dict(learning_rate=lambda step: 0.1 * cosine.factor(step), generator=generator)
    elbo = advi.fit(score, *start, steps=1500, draws=4, full_rank=False, **settings)
    distances = (elbo.mean - means).norm(dim=1)
    assert distances.min() < 0.15
    other = means[distances.argmax()]
    assert Normal(elbo.mean, elbo.covariance.diagonal().sqrt()).log_prob(other).sum() < -50


def banana(theta: Tensor) -> Tensor:
    """log density, normalised: x ~ N(0, 1.5^2), y given x ~ N(x + 0.3 (x^2 - 2.25), 0.5^2); theta (..., 2)."""
    x, y = theta.unbind(-1)
    return Normal(0.0, 1.5).log_prob(x) + Normal(x + 0.3 * (x.square() - 2.25), 0.5).log_prob(y)


class Bend(Transform):
    """z -> (a + s_0 z_0, b + c_0 x + c_1 x^2 + s_1 z_1): a step of an autoregressive flow; log s free."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.offset, self.log_scale, self.bend = (parameters[name] for name in ("offset", "log_scale", "bend"))

    def _curve(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.stack([zero, self.bend[0] * x + self.bend[1] * x.square()], -1)

    def _call(self, z: Tensor) -> Tensor:
        scaled = self.offset + self.log_scale.exp() * z
        return scaled + self._curve(scaled[..., 0])

    def _inverse(self, theta: Tensor) -> Tensor:
        return (theta - self._curve(theta[..., 0]) - self.offset) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, z: Tensor, theta: Tensor) -> Tensor:
        return self.log_scale.sum().expand(z.shape[:-1])


class Flow(TransformedDistribution):
    """A standard normal pair through :class:`Bend`."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        super().__init__(Independent(Normal(zero, one), 1), [Bend(parameters)], validate_args=False)
        self.parameters = parameters

    @property
    def mean(self) -> Tensor:
        (a, b), bend = self.parameters["offset"], self.parameters["bend"]
        second_moment = a.square() + (2 * self.parameters["log_scale"][0]).exp()
        return torch.stack([a, b + bend[0] * a + bend[1] * second_moment])


def divergences(block: Block) -> tuple[float, float]:
    """KL(p || q) and KL(q || p) of the banana p by the midpoint rule on [-8, 8] x [-8, 30]."""
    x, y = torch.linspace(-8, 8, 401, dtype=torch.float64), torch.linspace(-8, 30, 1001, dtype=torch.float64)
    grid = torch.cartesian_prod(x, y)
    cell = (x[1] - x[0]) * (y[1] - y[0])
    log_p = banana(grid)
    log_q = torch.func.vmap(lambda theta: block.family.log_prob(block.state, theta, whole))(grid).detach()
    assert log_p.exp().sum() * cell == pytest.approx(1.0, abs=1e-3)
    assert log_q.exp().sum() * cell == pytest.approx(1.0, abs=1e-2)
    return ((log_p.exp() * (log_p - log_q)).sum() * cell).item(), ((log_q.exp() * (log_q - log_p)).sum() * cell).item()


def test_a_flow_is_closer_to_a_banana_than_a_full_covariance_and_that_closer_than_a_mean_field() -> None:
    """In both directions, each at least by a factor of 1.5; over seeds it is 1.8 or more. The flow, which has the target
    in its family, comes within 0.1 nats of it in KL(q || p), 0.007 to 0.044 over seeds; full covariance 0.4, mean field
    0.8."""
    zeros = torch.zeros(2, dtype=torch.float64)
    flow = Distribution(Flow, {"offset": zeros, "log_scale": zeros, "bend": zeros})
    fits = [
        fit(banana, 2, flow, 600, lr=0.03),
        fit(banana, 2, FullCovariance(), 400, initial_precision=1.0),
        fit(banana, 2, MeanField(), 400, initial_precision=1.0),
    ]
    forward, reverse = zip(*(divergences(block) for block in fits), strict=True)
    for near, far in ((0, 1), (1, 2)):
        assert 1.5 * forward[near] < forward[far], forward
        assert 1.5 * reverse[near] < reverse[far], reverse
    assert reverse[0] < 0.1, reverse


def test_a_student_family_finds_a_student_target() -> None:
    """Three coordinates with 5 degrees of freedom: locations within 0.15 of their scales, scales within 20 %; over seeds
    the largest errors are 0.03 to 0.06 and 3 to 10 %."""
    location, scale = torch.tensor([[1.0, -2.0, 0.5], [0.5, 1.0, 1.5]], dtype=torch.float64)

    def build(parameters: Mapping[str, Tensor]) -> StudentT:
        return StudentT(5.0, parameters["location"], parameters["log_scale"].exp(), validate_args=False)

    zeros = torch.zeros(3, dtype=torch.float64)
    family = Distribution(build, {"location": zeros, "log_scale": zeros})
    block = fit(
        lambda theta: StudentT(5.0, location, scale).log_prob(theta).sum(), 3, family, 300, (0.01, 0.01), lr=0.2
    )
    assert ((block.state["location"] - location) / scale).abs().max() < 0.15
    assert (block.state["log_scale"] - scale.log()).abs().max() < math.log(1.2)
