"""Samples, standard deviations and covariances of posteriors, by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proxscore.config import ConfigError
from proxscore.inference import Distribution, FullCovariance, Kronecker, LowRank, MeanField, Mixture
from proxscore.inference.families import Family, State
from proxscore.inference.layout import Layout
from proxscore.posterior import DropoutPosterior, Posterior, Samples, SWAGPosterior
from proxscore.posterior.posterior import Joint

DRAWS = 2000
D = 7  # of a (2, 3) and a scalar


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def joint(family: Family, state: State, names: tuple[str, ...] = ("w", "s")) -> Posterior:
    shapes = {"w": (2, 3), "s": ()}
    mean = {name: torch.zeros(shapes[name], dtype=torch.float64) for name in names}
    layout = Layout(family, [(name, mean[name], 0) for name in names])
    layout.put(family.mean(state), mean.values())
    return Posterior(mean, joint=[Joint(layout, state)])


def student(parameters: dict[str, Tensor]) -> torch.distributions.Distribution:
    return torch.distributions.StudentT(8.0, parameters["loc"], parameters["loc"].abs() + 0.5)


def mean_field() -> Posterior:
    mean = {"w": normal(2, 3), "fixed": torch.ones(2, dtype=torch.float64), "s": normal()}
    return Posterior(mean, {"w": normal(2, 3, seed=1).square() + 0.2, "s": torch.tensor(4.0, dtype=torch.float64)})


def swag() -> Posterior:
    deviations = [{"w": normal(2, 3, seed=k), "s": normal(seed=k + 9)} for k in range(3)]
    point = mean_field()
    return SWAGPosterior(point.mean, point.precision, deviations=deviations)


def samples() -> Posterior:
    members = [mean_field(), mean_field()]
    members[1].mean = {name: value + 1.5 for name, value in members[1].mean.items()}
    return Samples(members)


KINDS: dict[str, Callable[[], Posterior]] = {
    "mean_field": mean_field,
    "mean_field block": lambda: joint(MeanField(), {"mean": normal(D), "precision": normal(D, seed=1).square() + 0.2}),
    "full_covariance": lambda: joint(FullCovariance(), {"mean": normal(D), "factor": normal(D, D)}),
    "low_rank": lambda: joint(LowRank(2), {"mean": normal(D), "variance": normal(D).square(), "factor": normal(D, 2)}),
    "kronecker": lambda: joint(Kronecker(), {"mean": normal(6), "rows": normal(2, 2), "columns": normal(3, 3)}, ("w",)),
    "mixture": lambda: joint(
        Mixture(2, weights=[0.3, 0.7]), {"means": normal(D, 2), "precisions": normal(D, 2, seed=1).square() + 0.2}
    ),
    "distribution": lambda: joint(Distribution(student, {"loc": normal(D)}), {"loc": normal(D)}),
    "swag": swag,
    "samples": samples,
}


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_the_draws(kind: str) -> None:
    """2,000 draws: standard deviations within 10 %, covariances within 0.12 of the product of the two (their errors: 1.6 to
    2.5 % and 0.022)."""
    posterior = KINDS[kind]()
    drawn = posterior.sample(DRAWS)
    flat = torch.cat([drawn[name].reshape(DRAWS, -1) for name in posterior.mean], 1)
    assert {name: value.shape[1:] for name, value in drawn.items()} == {n: v.shape for n, v in posterior.mean.items()}
    sd = torch.cat([value.reshape(-1) for value in posterior.sd().values()])
    torch.testing.assert_close(sd, flat.std(0), rtol=0.1, atol=1e-12)
    covariance = posterior.covariance()
    torch.testing.assert_close(covariance.diagonal().sqrt(), sd)
    scale = torch.outer(sd, sd).clamp_min(1e-12)
    assert ((covariance - flat.mT.cov()) / scale).abs().max() < 0.12
    if kind != "samples":  # whose mean is its last member's: means of modes are none
        mean = torch.cat([value.reshape(-1) for value in posterior.mean.values()])
        assert ((flat.mean(0) - mean) / sd.clamp_min(1e-12)).abs().max() < 0.12


def test_a_covariance_comes_in_the_order_of_the_names_that_are_asked_for() -> None:
    posterior = KINDS["full_covariance"]()
    whole = posterior.covariance()
    assert torch.equal(posterior.covariance(["s", "w"]), whole[[6, *range(6)]][:, [6, *range(6)]])
    assert torch.equal(posterior.covariance(["s"]), whole[6:, 6:])


def test_samples_are_the_draws_of_the_seed() -> None:
    posterior = KINDS["full_covariance"]()
    drawn = posterior.sample(3, seed=5)
    assert all(torch.equal(drawn[name][2], value) for name, value in posterior.draw(2, seed=5).items())
    members = Samples([Posterior({"w": torch.full((2,), float(k))}) for k in range(4)])
    assert members.sample(4)["w"][:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert members.sample(6)["w"].shape == (6, 2)


def test_what_has_no_moments_says_so_in_one_line() -> None:
    dropout = DropoutPosterior({"w": torch.ones(2)})
    for call in (lambda: dropout.sample(2), dropout.sd, dropout.covariance):
        with pytest.raises(ConfigError, match="mc_dropout are masks of units"):
            call()
    with pytest.raises(ConfigError, match="n is 0"):
        mean_field().sample(0)
    with pytest.raises(ConfigError, match="names: 'v' is none of w, fixed, s"):
        mean_field().covariance(["v"])
    with pytest.raises(ConfigError, match="30,000 numbers is too large"):
        Posterior({"w": torch.zeros(30_000)}, {"w": torch.ones(30_000)}).covariance()
